/* What the test programs share: checks that say where they failed, and sockets on the loopback of either family. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        errno = 0;                                                                                            \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: not %s; errno %d (%s)\n", __FILE__, __LINE__, #condition, errno,          \
                    strerror(errno));                                                                         \
            fflush(NULL);                                                                                     \
            _exit(1);                                                                                         \
        }                                                                                                     \
    } while (0)

/* A call that must fail with this errno. */
#define FAILS(call, with) CHECK((call) == -1 && errno == (with))

typedef struct {
    socklen_t length;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage storage;
    };
} address;

static int family_of(const char *text) { return strcmp(text, "6") == 0 ? AF_INET6 : AF_INET; }

static address loopback(int family, int port) {
    address a;
    memset(&a, 0, sizeof a);
    if (family == AF_INET) {
        a.length = sizeof a.v4;
        a.v4.sin_family = AF_INET;
        a.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        a.v4.sin_port = htons(port);
    } else {
        a.length = sizeof a.v6;
        a.v6.sin6_family = AF_INET6;
        a.v6.sin6_addr = in6addr_loopback;
        a.v6.sin6_port = htons(port);
    }
    return a;
}

static int port_of(address a) { return ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port); }

static int same(address a, address b) { return a.length == b.length && memcmp(&a.storage, &b.storage, a.length) == 0; }

static address own_address(int fd) {
    address a;
    memset(&a, 0, sizeof a);
    a.length = sizeof a.storage;
    CHECK(getsockname(fd, &a.any, &a.length) == 0);
    return a;
}

static address peer_address(int fd) {
    address a;
    memset(&a, 0, sizeof a);
    a.length = sizeof a.storage;
    CHECK(getpeername(fd, &a.any, &a.length) == 0);
    return a;
}

static int tcp(int family) {
    int fd = socket(family, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

/* Listens on a port of the kernel's choice. */
static int listener(int family, address *where) {
    int fd = tcp(family);
    address a = loopback(family, 0);
    CHECK(bind(fd, &a.any, a.length) == 0);
    CHECK(listen(fd, 64) == 0);
    *where = own_address(fd);
    return fd;
}

static int dial(address to) {
    int fd = tcp(to.any.sa_family);
    CHECK(connect(fd, &to.any, to.length) == 0);
    return fd;
}

/* Both ends of a protected connection, listener closed. */
static void connection(int family, int *client, int *server) {
    address where;
    int l = listener(family, &where);
    *client = dial(where);
    *server = accept(l, NULL, NULL);
    CHECK(*server >= 0);
    CHECK(close(l) == 0);
}

/* A unix socket under the number: the ARMOR has it. */
static int is_swapped(int fd) {
    char path[64], link[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0) return 0;
    link[n] = 0;
    FILE *list = fopen("/proc/net/unix", "r");
    char line[512];
    int found = 0;
    unsigned long inode = strtoul(strchr(link, '[') + 1, NULL, 10);
    while (list && fgets(line, sizeof line, list)) {
        unsigned long other = 0;
        if (sscanf(line, "%*s %*s %*s %*s %*s %*s %lu", &other) == 1 && other == inode) found = 1;
    }
    if (list) fclose(list);
    return found;
}

static void echo(int from, int to) {
    char byte = 0;
    CHECK(write(from, "x", 1) == 1);
    CHECK(read(to, &byte, 1) == 1 && byte == 'x');
}

static void works(int client, int server) {
    echo(client, server);
    echo(server, client);
}

static int poll_now(int fd, short events) {
    struct pollfd p = {.fd = fd, .events = events};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static int poll_wait(int fd, short events) {
    struct pollfd p = {.fd = fd, .events = events};
    CHECK(poll(&p, 1, 20000) == 1);
    return p.revents;
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &length) == 0);
    return value;
}

static void say(const char *what) {
    puts(what);
    fflush(stdout);
}

/* Waits for a line of standard input. */
static void await(void) {
    char line[64];
    CHECK(fgets(line, sizeof line, stdin));
}

static void reaped(pid_t pid) {
    int status = -1;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
