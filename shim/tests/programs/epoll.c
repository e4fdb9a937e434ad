/* Rule 4: epoll registrations made before the swap survive it, with their data and flags. */
#include "check.h"

static int ready(int e, uint32_t events, uint64_t data) {
    struct epoll_event got = {0};
    return epoll_wait(e, &got, 1, 20000) == 1 && (got.events & events) == events && got.data.u64 == data;
}

/* The same, after any number of reports that there is room: it may come in pieces. */
static int ready_at_last(int e, uint32_t events, uint64_t data) {
    struct epoll_event got = {0};
    while (epoll_wait(e, &got, 1, 20000) == 1)
        if (got.events & ~(uint32_t)EPOLLOUT) return (got.events & events) == events && got.data.u64 == data;
    return 0;
}

static int idle(int e) {
    struct epoll_event got;
    return epoll_wait(e, &got, 1, 0) == 0;
}

static void add(int e, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void registered_before_connect(int family) {
    address where;
    int l = listener(family, &where), first = epoll_create1(0), second = epoll_create1(0);
    int c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    add(first, c, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 0x1122334455667788);
    add(second, c, EPOLLIN, 7);
    struct epoll_event junk;
    epoll_wait(first, &junk, 1, 0); /* the unconnected socket's own EPOLLHUP, as with any TCP socket */
    CHECK(connect(c, &where.any, where.length) == 0 || errno == EINPROGRESS);
    CHECK(is_swapped(c));
    int s = accept(l, NULL, NULL);
    CHECK(ready(first, EPOLLOUT, 0x1122334455667788) && idle(second));
    CHECK(write(s, "x", 1) == 1);
    CHECK(ready_at_last(first, EPOLLIN, 0x1122334455667788) && ready(second, EPOLLIN, 7));
    CHECK(idle(first));             /* edge-triggered */
    CHECK(ready(second, EPOLLIN, 7)); /* level-triggered */
    /* the registrations are the kernel's: they can be changed and removed */
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 8};
    CHECK(epoll_ctl(second, EPOLL_CTL_MOD, c, &event) == 0 && ready(second, EPOLLOUT, 8));
    CHECK(epoll_ctl(second, EPOLL_CTL_DEL, c, NULL) == 0 && idle(second));
    FAILS(epoll_ctl(first, EPOLL_CTL_ADD, c, &event), EEXIST);
    CHECK(shutdown(s, SHUT_WR) == 0);
    CHECK(ready(first, EPOLLRDHUP, 0x1122334455667788));
}

static void registered_before_listen(int family) {
    int l = tcp(family), e = epoll_create1(0);
    address a = loopback(family, 0);
    add(e, l, EPOLLIN, 99);
    CHECK(bind(l, &a.any, a.length) == 0 && listen(l, 8) == 0 && is_swapped(l));
    struct epoll_event junk;
    while (epoll_wait(e, &junk, 1, 0) == 1 && !(junk.events & EPOLLIN)) {}
    dial(own_address(l));
    CHECK(ready(e, EPOLLIN, 99));
    CHECK(accept(l, NULL, NULL) >= 0 && idle(e));
}

static void modified_before_connect(int family) {
    address where;
    listener(family, &where);
    int c = tcp(family), e = epoll_create1(0);
    add(e, c, EPOLLIN, 1);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT, .data.u64 = 2};
    CHECK(epoll_ctl(e, EPOLL_CTL_MOD, c, &event) == 0);
    CHECK(connect(c, &where.any, where.length) == 0);
    CHECK(ready(e, EPOLLOUT, 2) && idle(e));
}

static void removed_registrations_stay_removed(int family) {
    address where;
    listener(family, &where);
    int c = tcp(family), e = epoll_create1(0), gone = epoll_create1(0);
    add(e, c, EPOLLOUT, 1);
    CHECK(epoll_ctl(e, EPOLL_CTL_DEL, c, NULL) == 0);
    add(gone, c, EPOLLOUT, 1);
    CHECK(close(gone) == 0);
    /* a descriptor that is closed and opened again has no registrations */
    CHECK(close(c) == 0 && tcp(family) == c);
    CHECK(connect(c, &where.any, where.length) == 0 && is_swapped(c));
    CHECK(idle(e));
}

static void registered_duplicates(int family) {
    address where;
    listener(family, &where);
    int c = tcp(family), copy = dup(c), e = epoll_create1(0);
    add(e, copy, EPOLLOUT | EPOLLET, 5);
    struct epoll_event junk;
    epoll_wait(e, &junk, 1, 0);
    CHECK(connect(c, &where.any, where.length) == 0 && is_swapped(copy));
    CHECK(ready(e, EPOLLOUT, 5));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "connect")) registered_before_connect(family);
    else if (!strcmp(argv[1], "listen")) registered_before_listen(family);
    else if (!strcmp(argv[1], "modified")) modified_before_connect(family);
    else if (!strcmp(argv[1], "removed")) removed_registrations_stay_removed(family);
    else if (!strcmp(argv[1], "duplicates")) registered_duplicates(family);
    else return 2;
    return 0;
}
