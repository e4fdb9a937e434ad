/* Rule 5: state is tied to the socket: fork, vfork, posix_spawn, duplicates. */
#include "check.h"
#include <spawn.h>

static void pre_forking_server(int family) {
    address where;
    int l = listener(family, &where);
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        if ((children[i] = fork()) == 0) {
            address from = {.length = sizeof from.storage};
            int s = accept(l, &from.any, &from.length);
            CHECK(s >= 0 && same(from, peer_address(s)) && same(where, own_address(s)));
            char byte;
            CHECK(read(s, &byte, 1) == 1 && write(s, &byte, 1) == 1);
            _exit(0);
        }
    }
    for (int i = 0; i < 3; i++) {
        int c = dial(where);
        char byte = 'a' + i;
        CHECK(write(c, &byte, 1) == 1);
        byte = 0;
        CHECK(read(c, &byte, 1) == 1 && byte == 'a' + i);
        CHECK(read(c, &byte, 1) == 0);
    }
    for (int i = 0; i < 3; i++) reaped(children[i]);
}

static void child_closes_its_parents_sockets(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    pid_t child = fork();
    if (child == 0) {
        CHECK(close(c) == 0 && close(s) == 0 && close(l) == 0);
        _exit(0);
    }
    reaped(child);
    works(c, s);
    int other = dial(where);
    CHECK(accept(l, NULL, NULL) >= 0 && close(other) == 0);
    /* a child that leaves with everything open */
    if ((child = fork()) == 0) exit(0);
    reaped(child);
    if ((child = vfork()) == 0) _exit(0);
    reaped(child);
    works(c, s);
    /* the child's copy keeps the connection open when the parent closes */
    int ready[2];
    CHECK(pipe(ready) == 0);
    if ((child = fork()) == 0) {
        char byte;
        CHECK(read(ready[0], &byte, 1) == 1);
        CHECK(write(c, "y", 1) == 1);
        _exit(0);
    }
    CHECK(close(c) == 0);
    CHECK(poll_now(s, POLLIN) == 0);
    CHECK(write(ready[1], "g", 1) == 1);
    char byte;
    CHECK(read(s, &byte, 1) == 1 && byte == 'y');
    CHECK(read(s, &byte, 1) == 0);
    reaped(child);
}

static void duplicates_made_before(int family) {
    int l = tcp(family), copy = dup(l), high = fcntl(l, F_DUPFD_CLOEXEC, 300), second = dup2(l, 200);
    CHECK(second == 200 && high >= 300);
    address a = loopback(family, 0);
    CHECK(bind(copy, &a.any, a.length) == 0 && listen(second, 8) == 0);
    CHECK(is_swapped(l) && is_swapped(copy) && is_swapped(high) && is_swapped(second));
    CHECK(fcntl(high, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
    a = own_address(high);
    int c = tcp(family), twin = dup(c);
    CHECK(connect(twin, &a.any, a.length) == 0 && is_swapped(c) && is_swapped(twin));
    int s = accept(l, NULL, NULL);
    CHECK(close(twin) == 0);
    works(c, s);
    CHECK(same(a, peer_address(c)));
    /* and after */
    int late = dup(c);
    CHECK(close(c) == 0);
    works(late, s);
}

static void spawned_children(int family, const char *self) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    char number[16];
    snprintf(number, sizeof number, "%d", c);
    char *arguments[] = {(char *)self, "inherit", family == AF_INET ? "4" : "6", number, NULL}, *nothing[] = {NULL};
    pid_t child;
    char byte;
    CHECK(posix_spawn(&child, self, NULL, NULL, arguments, nothing) == 0);
    reaped(child);
    CHECK(read(s, &byte, 1) == 1 && byte == 'i');
    if ((child = vfork()) == 0) {
        execve(self, arguments, nothing);
        _exit(9);
    }
    reaped(child);
    CHECK(read(s, &byte, 1) == 1 && byte == 'i');
    works(c, s);
}

static void inherit(int family, int fd) {
    CHECK(is_swapped(fd) && peer_address(fd).any.sa_family == family);
    CHECK(option(fd, IPPROTO_TCP, TCP_NODELAY) == 0 && write(fd, "i", 1) == 1);
}

static void *receive(void *fd) {
    char byte;
    long sum = 0;
    while (read(*(int *)fd, &byte, 1) == 1) sum += byte;
    return (void *)sum;
}

static void threads(int family) {
    address where;
    int l = listener(family, &where);
    pthread_t readers[8];
    int servers[8], clients[8];
    for (int i = 0; i < 8; i++) {
        clients[i] = dial(where);
        servers[i] = accept(l, NULL, NULL);
        CHECK(pthread_create(&readers[i], NULL, receive, &servers[i]) == 0);
    }
    for (int i = 0; i < 8; i++) CHECK(write(clients[i], "\1\2\3", 3) == 3 && close(clients[i]) == 0);
    for (int i = 0; i < 8; i++) {
        void *sum;
        CHECK(pthread_join(readers[i], &sum) == 0 && (long)sum == 6);
    }
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "prefork")) pre_forking_server(family);
    else if (!strcmp(argv[1], "child")) child_closes_its_parents_sockets(family);
    else if (!strcmp(argv[1], "duplicates")) duplicates_made_before(family);
    else if (!strcmp(argv[1], "spawn")) spawned_children(family, argv[0]);
    else if (!strcmp(argv[1], "inherit")) inherit(family, atoi(argv[3]));
    else if (!strcmp(argv[1], "threads")) threads(family);
    else return 2;
    return 0;
}
