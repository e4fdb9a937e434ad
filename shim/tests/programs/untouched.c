/* Rule 11: what is not a protected connection goes to the kernel as if there were no shim. */
#include "check.h"
#include <sys/un.h>

static void datagrams(int family) {
    int a = socket(family, SOCK_DGRAM, 0), b = socket(family, SOCK_DGRAM, 0);
    address to = loopback(family, 0);
    CHECK(bind(a, &to.any, to.length) == 0);
    to = own_address(a);
    CHECK(connect(b, &to.any, to.length) == 0 && !is_swapped(a) && !is_swapped(b));
    CHECK(same(peer_address(b), to));
    echo(b, a);
    CHECK(close(a) == 0 && close(b) == 0);
}

static void unix_sockets(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int length = snprintf(name.sun_path + 1, 100, "armor-test-%d", getpid());
    int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(l, (void *)&name, 3 + length) == 0 && listen(l, 3) == 0);
    CHECK(connect(c, (void *)&name, 3 + length) == 0);
    struct sockaddr_un back;
    socklen_t size = sizeof back;
    int s = accept(l, (void *)&back, &size);
    CHECK(s >= 0 && size == 2 && back.sun_family == AF_UNIX);
    size = sizeof back;
    CHECK(getpeername(c, (void *)&back, &size) == 0 && (int)size == 3 + length && !memcmp(&back, &name, size));
    works(c, s);
    char byte;
    CHECK(close(c) == 0 && read(s, &byte, 1) == 0);
    struct ucred me;
    size = sizeof me;
    CHECK(getsockopt(s, SOL_SOCKET, SO_PEERCRED, &me, &size) == 0 && me.pid == getpid());
    CHECK(option(s, SOL_SOCKET, SO_DOMAIN) == AF_UNIX);
}

static void another_server(int family, int port) {
    address where = loopback(family, port);
    int c = dial(where);
    CHECK(!is_swapped(c) && same(where, peer_address(c)));
    FAILS(connect(c, &where.any, where.length), EISCONN);
    char byte = 'k';
    CHECK(write(c, &byte, 1) == 1 && read(c, &byte, 1) == 1 && byte == 'k');
    CHECK(close(c) == 0);
    c = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(connect(c, &where.any, where.length) == 0 || errno == EINPROGRESS);
    CHECK(poll_wait(c, POLLOUT) == POLLOUT && option(c, SOL_SOCKET, SO_ERROR) == 0);
}

static void nobody(int family, int port) {
    address where = loopback(family, port);
    int c = tcp(family);
    FAILS(connect(c, &where.any, where.length), ECONNREFUSED);
    address wrong = loopback(family == AF_INET ? AF_INET6 : AF_INET, port);
    FAILS(connect(c, &wrong.any, family == AF_INET ? 16 : wrong.length), family == AF_INET ? EAFNOSUPPORT : EINVAL);
    FAILS(connect(c, &where.any, 3), EINVAL);
    FAILS(connect(999, &where.any, where.length), EBADF);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    CHECK(connect(c, &none, sizeof none) == 0);
}

static void all_native(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    CHECK(!is_swapped(l) && !is_swapped(c));
    works(c, s);
    CHECK(close(c) == 0);
    char byte;
    CHECK(read(s, &byte, 1) == 0);
}

static void bind_fails(int family, int with) {
    int l = tcp(family);
    address a = loopback(family, 0);
    FAILS(bind(l, &a.any, a.length), with);
}

static void binds(int family) {
    address where;
    int l = listener(family, &where);
    CHECK(is_swapped(l));
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "datagrams")) datagrams(family);
    else if (!strcmp(argv[1], "unix")) unix_sockets();
    else if (!strcmp(argv[1], "another")) another_server(family, atoi(argv[3]));
    else if (!strcmp(argv[1], "nobody")) nobody(family, atoi(argv[3]));
    else if (!strcmp(argv[1], "native")) all_native(family);
    else if (!strcmp(argv[1], "absent")) bind_fails(family, ENETDOWN);
    else if (!strcmp(argv[1], "refused")) bind_fails(family, EACCES);
    else if (!strcmp(argv[1], "binds")) binds(family);
    else return 2;
    return 0;
}
