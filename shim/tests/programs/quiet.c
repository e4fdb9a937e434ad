/* Rule 7: no deadlock between fork and threads, no thread, no signal, no allocation where there must be none, errno kept. */
#include "check.h"
#include <dirent.h>

/* Counts what the program allocates; the C library itself allocates through these as well. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
static volatile int allocations;
void *malloc(size_t n) { return __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED), __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED), __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED), __libc_realloc(p, n); }

static int threads(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    while (readdir(tasks)) count++;
    closedir(tasks);
    return count - 2;
}

/* What a program may notice of the shim before it does anything: the same without one. */
static void report(int before_main) {
    printf("before main %d\nsignals ", before_main);
    for (int signal = 1; signal < NSIG; signal++) {
        struct sigaction action;
        int known = sigaction(signal, NULL, &action) == 0;
        putchar(!known ? '-' : action.sa_handler == SIG_DFL ? 'd' : action.sa_handler == SIG_IGN ? 'i' : 'h');
    }
    puts("");
    fflush(stdout);
}

static void allocations_only_where_allowed(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), d = dial(where);
    int before = allocations;
    int s = accept(l, NULL, NULL), t = accept4(l, NULL, NULL, SOCK_CLOEXEC);
    CHECK(s >= 0 && t >= 0);
    address a = own_address(s);
    a = peer_address(s);
    (void)a;
    char byte;
    CHECK(shutdown(c, SHUT_WR) == 0 && read(s, &byte, 1) == 0);
    CHECK(close(c) == 0 && close(s) == 0);
    CHECK(dup2(d, 100) == 100 && dup2(0, 100) == 100);
    CHECK(close_range(d, d, 0) == 0);
    CHECK(allocations == before);
    pid_t child = vfork();
    if (child == 0) {
        char *list[] = {"nothing", NULL}, *nothing[] = {NULL};
        execve("/nonexistent", list, nothing);
        close(t);
        _exit(0);
    }
    reaped(child);
    CHECK(allocations == before);
    CHECK(threads() == 1);
}

static void errno_is_kept(int family) {
    address where, a = {.length = sizeof a.storage};
    int l = tcp(family);
    where = loopback(family, 0);
#define KEEPS(call)                                                                                           \
    do {                                                                                                      \
        errno = 77;                                                                                           \
        int result = (call);                                                                                  \
        int left = errno;                                                                                     \
        CHECK(result >= 0);                                                                                   \
        if (left != 77) fprintf(stderr, "%s left errno %d\n", #call, left), _exit(1);                         \
    } while (0)
    KEEPS(bind(l, &where.any, where.length));
    KEEPS(listen(l, 5));
    KEEPS(getsockname(l, &where.any, &where.length));
    int c = tcp(family), s = -1, value = 1;
    socklen_t length = sizeof value;
    KEEPS(connect(c, &where.any, where.length));
    KEEPS(s = accept(l, NULL, NULL));
    KEEPS(getpeername(s, &a.any, &a.length));
    KEEPS(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value));
    KEEPS(getsockopt(c, IPPROTO_TCP, TCP_NODELAY, &value, &length));
    KEEPS(getsockopt(c, SOL_SOCKET, SO_ERROR, &value, &length));
    KEEPS(dup2(c, 150));
    KEEPS(close(150));
    KEEPS(shutdown(c, SHUT_WR));
    KEEPS(read(s, &value, 1));
    KEEPS(close(c));
    KEEPS(close_range(s, s, 0));
    KEEPS(close(l));
    KEEPS(close(open("/dev/null", O_RDONLY)));
    KEEPS(fcntl(0, F_GETFD));
}

static address target;
static volatile int stop;
static void *busy(void *unused) {
    while (!stop) {
        int c = dial(target);
        struct linger none = {0, 0};
        setsockopt(c, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        CHECK(close(c) == 0);
    }
    return unused;
}

/* A worker or a child may wait for room in the backlog. */
static void accept_all(int l) {
    for (int s; (s = accept(l, NULL, NULL)) >= 0;) CHECK(close(s) == 0);
}

static void fork_while_threads_connect(int family) {
    int l = listener(family, &target);
    fcntl(l, F_SETFL, O_NONBLOCK);
    pthread_t workers[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&workers[i], NULL, busy, NULL) == 0);
    for (int round = 0; round < 30; round++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            int c = tcp(family), value = 1;
            CHECK(connect(c, &target.any, target.length) == 0);
            CHECK(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value) == 0);
            CHECK(close(c) == 0);
            _exit(0);
        }
        int status;
        while (waitpid(child, &status, WNOHANG) == 0) {
            struct pollfd p = {.fd = l, .events = POLLIN};
            poll(&p, 1, 10);
            accept_all(l);
        }
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    stop = 1;
    for (int i = 0; i < 3; i++) {
        struct timespec soon;
        do {
            accept_all(l);
            clock_gettime(CLOCK_REALTIME, &soon);
            soon.tv_nsec += 10000000;
            if (soon.tv_nsec >= 1000000000) soon.tv_nsec -= 1000000000, soon.tv_sec++;
        } while (pthread_timedjoin_np(workers[i], NULL, &soon) != 0);
    }
}

static int cleaned;
static void clean(void *unused) { (void)unused, cleaned++; }
static void *blocked_reader(void *fd) {
    char byte;
    pthread_cleanup_push(clean, NULL);
    CHECK(read(*(int *)fd, &byte, 1) == -2);
    pthread_cleanup_pop(0);
    return NULL;
}
static void *blocked_acceptor(void *fd) {
    pthread_cleanup_push(clean, NULL);
    CHECK(accept(*(int *)fd, NULL, NULL) == -2);
    pthread_cleanup_pop(0);
    return NULL;
}
static void *blocked_receiver(void *fd) {
    char byte;
    address from = {.length = sizeof from.storage};
    pthread_cleanup_push(clean, NULL);
    CHECK(recvfrom(*(int *)fd, &byte, 1, 0, &from.any, &from.length) == -2);
    pthread_cleanup_pop(0);
    return NULL;
}

static void threads_can_be_cancelled(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    void *(*bodies[])(void *) = {blocked_reader, blocked_acceptor, blocked_receiver};
    int *fds[] = {&s, &l, &c};
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        void *result;
        CHECK(pthread_create(&thread, NULL, bodies[i], fds[i]) == 0);
        usleep(20000);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED && cleaned == i + 1);
    }
    works(c, s);
}

int main(int argc, char **argv) {
    int before_main = allocations;
    CHECK(argc == 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "allocations")) {
        allocations_only_where_allowed(family);
        report(before_main); /* signals, after all that the shim has done */
    } else if (!strcmp(argv[1], "report")) report(before_main);
    else if (!strcmp(argv[1], "errno")) errno_is_kept(family);
    else if (!strcmp(argv[1], "fork")) fork_while_threads_connect(family);
    else if (!strcmp(argv[1], "cancel")) threads_can_be_cancelled(family);
    else return 2;
    return 0;
}
