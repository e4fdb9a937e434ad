/* Rule 9: bind and listen as the kernel does them. */
#include "check.h"

static void bound_twice(int family) {
    address where;
    int l = listener(family, &where), other = tcp(family);
    FAILS(bind(other, &where.any, where.length), EADDRINUSE);
    CHECK(!is_swapped(other));
    FAILS(bind(l, &where.any, where.length), EINVAL);
    address free_one = loopback(family, 0);
    CHECK(bind(other, &free_one.any, free_one.length) == 0); /* after the failure */
    FAILS(bind(other, &free_one.any, free_one.length), EINVAL);
    CHECK(port_of(own_address(other)) != port_of(where));
    address foreign = loopback(family, 0);
    if (family == AF_INET) foreign.v4.sin_addr.s_addr = htonl(0xc0000201);
    else CHECK(inet_pton(AF_INET6, "2001:db8::1", &foreign.v6.sin6_addr) == 1);
    int third = tcp(family);
    FAILS(bind(third, &foreign.any, foreign.length), EADDRNOTAVAIL);
    FAILS(bind(third, &foreign.any, 3), EINVAL);
    address wrong = loopback(family == AF_INET ? AF_INET6 : AF_INET, 0);
    CHECK(bind(third, &wrong.any, wrong.length) == -1);
    FAILS(bind(999, &where.any, where.length), EBADF);
    int file = open("/dev/null", O_RDONLY);
    FAILS(bind(file, &where.any, where.length), ENOTSOCK);
    FAILS(listen(file, 5), ENOTSOCK);
    FAILS(bind(third, NULL, 0), EINVAL);
}

static void port_zero_is_resolved_at_bind(int family) {
    int l = tcp(family);
    address a = loopback(family, 0);
    CHECK(bind(l, &a.any, a.length) == 0);
    address before = own_address(l);
    CHECK(port_of(before) != 0 && listen(l, 5) == 0 && same(before, own_address(l)));
    CHECK(listen(l, 50) == 0); /* again, with another backlog */
    a.length = sizeof a.storage;
    int c = dial(before);
    CHECK(accept(l, NULL, NULL) >= 0 && port_of(peer_address(c)) == port_of(before));
}

static void listening_without_bind(int family) {
    int l = tcp(family);
    CHECK(listen(l, 5) == 0 && is_swapped(l));
    address a = own_address(l);
    CHECK(port_of(a) != 0 && a.any.sa_family == family);
    int c = dial(loopback(family, port_of(a)));
    CHECK(is_swapped(c) && accept(l, NULL, NULL) >= 0);
}

static void connecting_to_ones_own_listener(int family) {
    address where;
    int l = listener(family, &where);
    for (int i = 0; i < 20; i++) {
        int c = dial(where), s = accept(l, NULL, NULL);
        works(c, s);
        CHECK(close(c) == 0 && close(s) == 0);
    }
    int c = dial(where);
    FAILS(connect(l, &where.any, where.length), EISCONN);
    FAILS(listen(c, 5), EINVAL);
    FAILS(bind(c, &where.any, where.length), EINVAL);
    int s = accept(l, NULL, NULL);
    FAILS(connect(s, &where.any, where.length), EISCONN);
    FAILS(accept(c, NULL, NULL), EINVAL);
}

/* A client's socket, bound to this port of the loopback; 0 lets the kernel choose. */
static int bound_client(int family, int port, address *own) {
    int c = tcp(family), one = 1;
    CHECK(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    *own = loopback(family, port);
    CHECK(bind(c, &own->any, own->length) == 0);
    CHECK(setsockopt(c, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0);
    *own = own_address(c);
    CHECK(port_of(*own) != 0 && (port == 0 || port_of(*own) == port));
    CHECK(option(c, SOL_SOCKET, SO_ACCEPTCONN) == 0);
    return c;
}

static void keeps_its_options(int c) {
    CHECK(option(c, IPPROTO_TCP, TCP_NODELAY) == 1 && option(c, SOL_SOCKET, SO_KEEPALIVE) == 1);
}

static void a_bound_client_keeps_its_port(int family, int port, int given_back) {
    address where, own;
    int l = listener(family, &where), c = bound_client(family, port, &own);
    int e = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 3};
    CHECK(epoll_ctl(e, EPOLL_CTL_ADD, c, &event) == 0);
    CHECK(connect(c, &where.any, where.length) == 0 && is_swapped(c));
    CHECK(epoll_wait(e, &event, 1, 0) == 1 && event.events == EPOLLOUT && event.data.u64 == 3);
    CHECK(same(own, own_address(c)) && same(where, peer_address(c)));
    if (given_back) keeps_its_options(c);
    address from = {.length = sizeof from.storage};
    int s = accept(l, &from.any, &from.length);
    CHECK(same(own, from) && same(own, peer_address(s)));
    works(c, s);

    /* without blocking */
    int d = bound_client(family, 0, &own);
    fcntl(d, F_SETFL, O_NONBLOCK);
    CHECK(connect(d, &where.any, where.length) == 0 || errno == EINPROGRESS);
    CHECK(poll_wait(d, POLLOUT) == POLLOUT && option(d, SOL_SOCKET, SO_ERROR) == 0);
    from.length = sizeof from.storage;
    s = accept(l, &from.any, &from.length);
    CHECK(s >= 0 && same(own, from) && same(own, own_address(d)));
}

static void a_bound_client_of_another_server(int family, int port, int server) {
    address own, where = loopback(family, server);
    int c = bound_client(family, port, &own);
    CHECK(connect(c, &where.any, where.length) == 0 && !is_swapped(c));
    CHECK(same(own, own_address(c)) && same(where, peer_address(c)));
    keeps_its_options(c);
    unsigned char seen[2];
    CHECK(recv(c, seen, 2, MSG_WAITALL) == 2 && (seen[0] << 8 | seen[1]) == port_of(own));
    CHECK(option(c, SOL_SOCKET, SO_KEEPALIVE) == 1);
}

static void bound_and_closed(int family, int port) {
    address own;
    for (int i = 0; i < 20; i++) {
        int c = bound_client(family, port, &own), other = tcp(family);
        FAILS(bind(other, &own.any, own.length), EADDRINUSE);
        /* nobody listens */
        FAILS(connect(other, &own.any, own.length), ECONNREFUSED);
        CHECK(close(c) == 0 && close(other) == 0);
    }
}

static void bound_before_the_fork(int family) {
    int l = tcp(family);
    address where = loopback(family, 0);
    CHECK(bind(l, &where.any, where.length) == 0);
    where = own_address(l);
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        if ((children[i] = fork()) == 0) {
            CHECK(listen(l, 8) == 0 && write(ready[1], "r", 1) == 1);
            int s = accept(l, NULL, NULL);
            char byte;
            CHECK(read(s, &byte, 1) == 1 && write(s, &byte, 1) == 1);
            _exit(0);
        }
    }
    char byte;
    for (int i = 0; i < 2; i++) CHECK(read(ready[0], &byte, 1) == 1);
    for (int i = 0; i < 2; i++) {
        int c = dial(where);
        CHECK(is_swapped(c) && write(c, "f", 1) == 1 && read(c, &byte, 1) == 1 && byte == 'f');
    }
    for (int i = 0; i < 2; i++) reaped(children[i]);
    CHECK(option(l, SOL_SOCKET, SO_ACCEPTCONN) == 1); /* the parent's copy too */
}

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

static void an_address_without_a_port(int family) {
    address where, own = loopback(family, 0), from = {.length = sizeof from.storage};
    int l = listener(family, &where), c = tcp(family), one = 1;
    CHECK(setsockopt(c, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one) == 0);
    CHECK(bind(c, &own.any, own.length) == 0 && !is_swapped(c) && port_of(own_address(c)) == 0);
    CHECK(connect(c, &where.any, where.length) == 0 && is_swapped(c));
    int s = accept(l, &from.any, &from.length);
    CHECK(s >= 0 && same(from, own_address(c)) && port_of(from) != 0);
    works(c, s);
}

static void the_port_of_ones_own_listener(int family) {
    address where, own = loopback(family, 0), from = {.length = sizeof from.storage};
    int l = listener(family, &where), mine = tcp(family), c = tcp(family), one = 1;
    CHECK(setsockopt(mine, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
    CHECK(setsockopt(c, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
    CHECK(bind(mine, &own.any, own.length) == 0 && listen(mine, 5) == 0);
    own = own_address(mine);
    CHECK(bind(c, &own.any, own.length) == 0 && connect(c, &where.any, where.length) == 0);
    int s = accept(l, &from.any, &from.length);
    CHECK(s >= 0 && same(from, own));
    int d = dial(own), t = accept(mine, NULL, NULL);
    works(c, s);
    works(d, t);
}

static void reuse(int family) {
    address where;
    int l = listener(family, &where), one = 1;
    CHECK(close(l) == 0);
    int a = tcp(family), b = tcp(family);
    CHECK(setsockopt(a, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
    CHECK(setsockopt(b, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
    where = loopback(family, 0);
    CHECK(bind(a, &where.any, where.length) == 0);
    where = own_address(a);
    CHECK(bind(b, &where.any, where.length) == 0 && same(where, own_address(b)));
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "twice")) bound_twice(family);
    else if (!strcmp(argv[1], "zero")) port_zero_is_resolved_at_bind(family);
    else if (!strcmp(argv[1], "unbound")) listening_without_bind(family);
    else if (!strcmp(argv[1], "own")) connecting_to_ones_own_listener(family);
    else if (!strcmp(argv[1], "client")) a_bound_client_keeps_its_port(family, atoi(argv[3]), argc == 4);
    else if (!strcmp(argv[1], "kernel")) a_bound_client_of_another_server(family, atoi(argv[3]), atoi(argv[4]));
    else if (!strcmp(argv[1], "closed")) bound_and_closed(family, atoi(argv[3]));
    else if (!strcmp(argv[1], "shared")) bound_before_the_fork(family);
    else if (!strcmp(argv[1], "no_port")) an_address_without_a_port(family);
    else if (!strcmp(argv[1], "same_port")) the_port_of_ones_own_listener(family);
    else if (!strcmp(argv[1], "reuse")) reuse(family);
    else return 2;
    return 0;
}
