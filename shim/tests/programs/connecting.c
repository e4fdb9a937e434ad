/* Rule 3: a non-blocking connect does not block, and its outcome shows as TCP's does. Blocking ones keep their limits. */
#include "check.h"
#include <sys/time.h>
#include <time.h>

static address where;
static int l;

static int begin(int family) {
    int c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(connect(c, &where.any, where.length), EINPROGRESS);
    CHECK(is_swapped(c) && (fcntl(c, F_GETFL) & O_NONBLOCK));
    return c;
}

static void check_pending(int c) {
    CHECK(poll_now(c, POLLOUT | POLLIN) == 0);
    FAILS(connect(c, &where.any, where.length), EALREADY);
    address a = {.length = sizeof a.storage};
    FAILS(getpeername(c, &a.any, &a.length), ENOTCONN);
    CHECK(port_of(own_address(c)) != 0);
    CHECK(option(c, SOL_SOCKET, SO_ERROR) == 0);
}

static void check_established(int c) {
    CHECK(option(c, SOL_SOCKET, SO_ERROR) == 0);
    FAILS(connect(c, &where.any, where.length), EISCONN);
    CHECK(same(where, peer_address(c)));
    int s = accept(l, NULL, NULL);
    CHECK(s >= 0 && same(own_address(c), peer_address(s)));
    fcntl(c, F_SETFL, 0);
    works(c, s);
    /* the filler is gone: nothing was left before what is written now */
    CHECK(close(c) == 0);
    char byte;
    CHECK(read(s, &byte, 1) == 0);
}

static void pending_then_established(int family, const char *by) {
    int c = begin(family);
    check_pending(c);
    int e = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.u64 = 42};
    if (!strcmp(by, "epoll")) {
        CHECK(epoll_ctl(e, EPOLL_CTL_ADD, c, &event) == 0);
        CHECK(epoll_wait(e, &event, 1, 0) == 0);
    }
    say("pending");
    if (!strcmp(by, "epoll")) {
        CHECK(epoll_wait(e, &event, 1, 20000) == 1 && event.data.u64 == 42 && event.events == EPOLLOUT);
    } else if (!strcmp(by, "select")) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(c, &set);
        struct timeval time = {20, 0};
        CHECK(select(c + 1, NULL, &set, NULL, &time) == 1 && FD_ISSET(c, &set));
    } else {
        CHECK(poll_wait(c, POLLOUT) == POLLOUT);
    }
    check_established(c);
}

static void pending_then_failed(int family, int expected) {
    int c = begin(family), again = begin(family), reader = begin(family);
    CHECK(poll_now(c, POLLOUT) == 0);
    say("pending");
    int events = poll_wait(c, POLLOUT);
    CHECK((events & POLLOUT) && (events & (POLLERR | POLLHUP)));
    CHECK(option(c, SOL_SOCKET, SO_ERROR) == expected);
    CHECK(option(c, SOL_SOCKET, SO_ERROR) == 0);
    poll_wait(again, POLLOUT);
    FAILS(connect(again, &where.any, where.length), expected);
    poll_wait(reader, POLLOUT);
    char byte;
    FAILS(recv(reader, &byte, 1, 0), expected);
    /* tried once more on the same socket */
    fcntl(c, F_SETFL, 0);
    CHECK(connect(c, &where.any, where.length) == 0);
    int s = accept(l, NULL, NULL);
    works(c, s);
}

static void refused_at_once(int family) {
    for (int flags = 0; flags <= SOCK_NONBLOCK; flags += SOCK_NONBLOCK) {
        int c = socket(family, SOCK_STREAM | flags, 0);
        FAILS(connect(c, &where.any, where.length), ECONNREFUSED);
        CHECK(!is_swapped(c));
        /* the same socket can be used again */
        if (!flags) CHECK(connect(c, &where.any, where.length) == 0);
    }
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void send_timeout_ends_a_blocking_connect(int family) {
    int c = tcp(family);
    struct timeval time = {0, 200000};
    CHECK(setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) == 0);
    double begin = seconds();
    FAILS(connect(c, &where.any, where.length), EINPROGRESS);
    CHECK(seconds() - begin >= 0.19);
    CHECK(poll_now(c, POLLOUT) == 0); /* it goes on */
    say("pending");
    CHECK(poll_wait(c, POLLOUT) == POLLOUT);
    check_established(c);
}

static volatile int alarms;
static void alarmed(int signal) { (void)signal, alarms++; }

static void a_signal_interrupts(int family, int flags) {
    struct sigaction action = {.sa_handler = alarmed, .sa_flags = flags};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {.it_value = {0, 100000}, .it_interval = {0, 100000}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    int c = tcp(family);
    if (flags & SA_RESTART) {
        say("pending");
        CHECK(connect(c, &where.any, where.length) == 0);
        CHECK(alarms > 0);
    } else {
        FAILS(connect(c, &where.any, where.length), EINTR);
        timer = (struct itimerval){{0, 0}, {0, 0}};
        CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
        CHECK(poll_now(c, POLLOUT) == 0); /* it goes on */
        say("pending");
        CHECK(poll_wait(c, POLLOUT) == POLLOUT);
    }
    check_established(c);
}

static void a_silent_armor_is_passed_by(int family) {
    int c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    double begin = seconds();
    int result = connect(c, &where.any, where.length);
    CHECK(seconds() - begin < 5);
    /* the kernel found nobody listening, for the service's address is only bound */
    CHECK(result == -1 && !is_swapped(c));
}

static void plain(int family) {
    int c = tcp(family);
    CHECK(connect(c, &where.any, where.length) == 0 && is_swapped(c));
    FAILS(connect(c, &where.any, where.length), EISCONN);
    check_established(c);
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    int family = family_of(argv[2]);
    const char *what = argv[1], *more = argc > 3 ? argv[3] : "";
    l = listener(family, &where);
    if (!strcmp(what, "established")) pending_then_established(family, more);
    else if (!strcmp(what, "failed")) pending_then_failed(family, atoi(more));
    else if (!strcmp(what, "refused")) refused_at_once(family);
    else if (!strcmp(what, "timeout")) send_timeout_ends_a_blocking_connect(family);
    else if (!strcmp(what, "interrupted")) a_signal_interrupts(family, 0);
    else if (!strcmp(what, "restarted")) a_signal_interrupts(family, SA_RESTART);
    else if (!strcmp(what, "silent")) a_silent_armor_is_passed_by(family);
    else if (!strcmp(what, "plain")) plain(family);
    else return 2;
    return 0;
}
