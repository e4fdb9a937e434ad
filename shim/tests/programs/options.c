/* Rule 2: options behave as on a TCP socket, and what was set is read back. */
#include "check.h"

static void set(int fd, int level, int name, int value) {
    CHECK(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

static void set_and_read_back(int fd, int family) {
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    CHECK(option(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 0);
    CHECK(option(fd, IPPROTO_TCP, TCP_NODELAY) == 0);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    CHECK(option(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
    set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
    CHECK(option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 12345);
    set(fd, SOL_SOCKET, SO_PRIORITY, 5);
    CHECK(option(fd, SOL_SOCKET, SO_PRIORITY) == 5);
    set(fd, SOL_SOCKET, SO_SNDBUF, 50000);
    CHECK(option(fd, SOL_SOCKET, SO_SNDBUF) == 100000);
    set(fd, SOL_SOCKET, SO_RCVBUF, 60000);
    CHECK(option(fd, SOL_SOCKET, SO_RCVBUF) == 120000);
    if (family == AF_INET) {
        set(fd, IPPROTO_IP, IP_TOS, 0x10);
        CHECK(option(fd, IPPROTO_IP, IP_TOS) == 0x10);
        set(fd, IPPROTO_IP, IP_TTL, 33);
        CHECK(option(fd, IPPROTO_IP, IP_TTL) == 33);
    } else {
        set(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x10);
        CHECK(option(fd, IPPROTO_IPV6, IPV6_TCLASS) == 0x10);
    }
    char name[16];
    socklen_t length = sizeof name;
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0 && length > 1 && name[0]);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, strlen(name)) == 0);
    FAILS(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nonesuch", 8), ENOENT);
    int value = 1;
    FAILS(setsockopt(fd, IPPROTO_TCP, 9999, &value, sizeof value), ENOPROTOOPT);
    FAILS(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, 1), EINVAL);
    length = sizeof value;
    FAILS(getsockopt(fd, IPPROTO_TCP, 9999, &value, &length), ENOPROTOOPT);
    length = 1;
    unsigned char byte = 9;
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &byte, &length) == 0 && length == 1 && byte == 1);
    struct timeval time = {1, 500000}, back;
    length = sizeof back;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &back, &length) == 0 && back.tv_sec == 1 && back.tv_usec == 500000);
}

static void constants(int fd, int family) {
    CHECK(option(fd, SOL_SOCKET, SO_DOMAIN) == family);
    CHECK(option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
    CHECK(option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM);
    CHECK(option(fd, SOL_SOCKET, SO_ERROR) == 0);
    struct ucred nobody;
    socklen_t length = sizeof nobody;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &nobody, &length) == 0);
    CHECK(nobody.pid == 0 && nobody.uid == (uid_t)-1);
    length = 4;
    FAILS(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, NULL, &length), EFAULT);
}

static int tcp_state(int fd) {
    struct tcp_info info;
    memset(&info, 0xff, sizeof info);
    socklen_t length = sizeof info;
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && length > 100 && length <= sizeof info);
    return info.tcpi_state;
}

static void every_socket(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    CHECK(is_swapped(l) && is_swapped(c) && is_swapped(s));
    int fds[] = {l, c, s};
    for (int i = 0; i < 3; i++) {
        constants(fds[i], family);
        set_and_read_back(fds[i], family);
    }
    CHECK(option(l, SOL_SOCKET, SO_ACCEPTCONN) == 1 && option(c, SOL_SOCKET, SO_ACCEPTCONN) == 0);
    CHECK(tcp_state(l) == TCP_LISTEN && tcp_state(c) == TCP_ESTABLISHED && tcp_state(s) == TCP_ESTABLISHED);
    works(c, s);
}

static void set_before_the_swap(int family) {
    int l = tcp(family), c = tcp(family);
    struct timeval short_time = {0, 50000};
    struct linger linger = {1, 3};
    set(l, SOL_SOCKET, SO_REUSEADDR, 1);
    set(l, SOL_SOCKET, SO_REUSEPORT, 1);
    set(l, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
    CHECK(setsockopt(l, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    if (family == AF_INET6) set(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    address a = loopback(family, 0);
    CHECK(bind(l, &a.any, a.length) == 0 && listen(l, 8) == 0);
    CHECK(option(l, SOL_SOCKET, SO_REUSEADDR) == 1 && option(l, SOL_SOCKET, SO_REUSEPORT) == 1);
    if (family == AF_INET6) CHECK(option(l, IPPROTO_IPV6, IPV6_V6ONLY) == 1);

    set(c, IPPROTO_TCP, TCP_NODELAY, 1);
    set(c, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(c, SOL_SOCKET, SO_RCVLOWAT, 2);
    set(c, SOL_SOCKET, SO_RCVBUF, 30000);
    CHECK(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time) == 0);
    CHECK(fcntl(c, F_SETFD, FD_CLOEXEC) == 0);
    a = own_address(l);
    CHECK(connect(c, &a.any, a.length) == 0 && is_swapped(c));
    CHECK(option(c, IPPROTO_TCP, TCP_NODELAY) == 1 && option(c, SOL_SOCKET, SO_KEEPALIVE) == 1);
    CHECK(option(c, SOL_SOCKET, SO_RCVLOWAT) == 2 && option(c, SOL_SOCKET, SO_RCVBUF) == 60000);
    CHECK(fcntl(c, F_GETFD) == FD_CLOEXEC);
    char byte;
    FAILS(read(c, &byte, 1), EAGAIN); /* after 50 ms */

    /* what an accepted socket has of its listener */
    int s = accept(l, NULL, NULL);
    struct linger back = {0, 0};
    socklen_t length = sizeof back;
    CHECK(getsockopt(s, SOL_SOCKET, SO_LINGER, &back, &length) == 0 && back.l_onoff == 1 && back.l_linger == 3);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    if (!strcmp(argv[1], "every")) every_socket(family_of(argv[2]));
    else if (!strcmp(argv[1], "before")) set_before_the_swap(family_of(argv[2]));
    else return 2;
    return 0;
}
