/* Rule 1: addresses are those that the program asked for, as a TCP socket would report them. */
#include "check.h"
#include <stddef.h>

static void both_ends_report_the_same_pair(int family) {
    address where, from = {.length = sizeof from.storage};
    int l = listener(family, &where);
    CHECK(is_swapped(l));
    CHECK(port_of(where) != 0 && where.any.sa_family == family);
    int c = dial(where);
    CHECK(is_swapped(c));
    int s = accept(l, &from.any, &from.length);
    CHECK(s >= 0);
    CHECK(from.any.sa_family == family && port_of(from) != 0);
    CHECK(same(from, own_address(c)));
    CHECK(same(from, peer_address(s)));
    CHECK(same(where, peer_address(c)));
    CHECK(same(where, own_address(s)));
    CHECK(same(where, own_address(l)));
    FAILS(getpeername(l, &from.any, &from.length), ENOTCONN);
    works(c, s);
}

static void addresses_are_cut_as_the_kernel_cuts_them(int family) {
    address where;
    int l = listener(family, &where), c = dial(where);
    unsigned char room[32];
    memset(room, 0xaa, sizeof room);
    socklen_t length = 4;
    int s = accept(l, (struct sockaddr *)room, &length);
    CHECK(s >= 0 && length == where.length);
    address own = own_address(c);
    CHECK(memcmp(room, &own.storage, 4) == 0 && room[4] == 0xaa);
    memset(room, 0xaa, sizeof room);
    length = 3;
    CHECK(getsockname(c, (struct sockaddr *)room, &length) == 0 && length == where.length && room[3] == 0xaa);
    length = 0;
    CHECK(getpeername(c, (struct sockaddr *)room, &length) == 0 && length == where.length);
    length = -1;
    FAILS(getpeername(c, (struct sockaddr *)room, &length), EINVAL);
    FAILS(getsockname(l, (struct sockaddr *)room, &length), EINVAL);
    FAILS(getsockname(c, NULL, NULL), EFAULT);
}

static void null_addresses_are_allowed(int family) {
    address where;
    int l = listener(family, &where);
    dial(where);
    dial(where);
    int first = accept(l, NULL, NULL), second = accept4(l, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(first >= 0 && fcntl(first, F_GETFD) == 0 && !(fcntl(first, F_GETFL) & O_NONBLOCK));
    CHECK(second >= 0 && fcntl(second, F_GETFD) == FD_CLOEXEC && (fcntl(second, F_GETFL) & O_NONBLOCK));
    fcntl(l, F_SETFL, O_NONBLOCK);
    FAILS(accept(l, NULL, NULL), EAGAIN);
}

static void v4_client_of_a_v6_listener_is_mapped(void) {
    address any = loopback(AF_INET6, 0), from = {.length = sizeof from.storage};
    any.v6.sin6_addr = in6addr_any;
    int l = tcp(AF_INET6);
    CHECK(bind(l, &any.any, any.length) == 0 && listen(l, 8) == 0);
    int c = dial(loopback(AF_INET, port_of(own_address(l))));
    int s = accept(l, &from.any, &from.length);
    CHECK(s >= 0 && from.any.sa_family == AF_INET6 && from.length == sizeof(struct sockaddr_in6));
    CHECK(IN6_IS_ADDR_V4MAPPED(&from.v6.sin6_addr) && from.v6.sin6_addr.s6_addr[12] == 127);
    CHECK(same(from, peer_address(s)));
    address own = own_address(s);
    CHECK(IN6_IS_ADDR_V4MAPPED(&own.v6.sin6_addr));
    CHECK(own_address(c).any.sa_family == AF_INET && port_of(own_address(c)) == port_of(from));

    address mapped = loopback(AF_INET6, port_of(own_address(l)));
    CHECK(inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.v6.sin6_addr) == 1);
    int m = dial(mapped);
    own = own_address(m);
    CHECK(same(mapped, peer_address(m)) && IN6_IS_ADDR_V4MAPPED(&own.v6.sin6_addr));
}

static void received_messages_have_no_sender_as_on_tcp(int family) {
    int c, s;
    connection(family, &c, &s);
    char byte;
    address from = {.length = sizeof from.storage};
    from.any.sa_family = 77;
    CHECK(write(c, "1", 1) == 1);
    CHECK(recvfrom(s, &byte, 1, 0, &from.any, &from.length) == 1 && byte == '1');
    CHECK(from.length == 0 && from.any.sa_family == 77);
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_name = &from.storage, .msg_namelen = 16, .msg_iov = &part, .msg_iovlen = 1};
    CHECK(write(c, "2", 1) == 1);
    CHECK(recvmsg(s, &message, 0) == 1 && byte == '2');
    CHECK(message.msg_namelen == 0 && message.msg_name == &from.storage && from.any.sa_family == 77);
    struct mmsghdr many = {.msg_hdr = message};
    many.msg_hdr.msg_namelen = 16;
    CHECK(write(c, "3", 1) == 1);
    CHECK(recvmmsg(s, &many, 1, 0, NULL) == 1 && many.msg_len == 1 && byte == '3' && many.msg_hdr.msg_namelen == 0);
}

static void a_destination_is_ignored_as_on_tcp(int family) {
    int c, s;
    connection(family, &c, &s);
    address elsewhere = loopback(family, 9);
    char bytes[4];
    CHECK(sendto(c, "ab", 2, 0, &elsewhere.any, elsewhere.length) == 2);
    struct iovec part = {"cd", 2};
    struct msghdr message = {.msg_name = &elsewhere.any, .msg_namelen = elsewhere.length, .msg_iov = &part, .msg_iovlen = 1};
    CHECK(sendmsg(c, &message, 0) == 2);
    CHECK(recv(s, bytes, 4, MSG_WAITALL) == 4 && memcmp(bytes, "abcd", 4) == 0);
}

static void other_sockets_keep_their_senders(void) {
    int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
    address to = loopback(AF_INET, 0), from = {.length = sizeof from.storage};
    CHECK(bind(a, &to.any, to.length) == 0 && bind(b, &to.any, to.length) == 0);
    to = own_address(a);
    CHECK(!is_swapped(a));
    CHECK(sendto(b, "u", 1, 0, &to.any, to.length) == 1);
    char byte;
    CHECK(recvfrom(a, &byte, 1, 0, &from.any, &from.length) == 1 && same(from, own_address(b)));
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_name = &from.storage, .msg_namelen = sizeof from.storage, .msg_iov = &part, .msg_iovlen = 1};
    memset(&from, 0, sizeof from);
    CHECK(sendto(b, "u", 1, 0, &to.any, to.length) == 1);
    CHECK(recvmsg(a, &message, 0) == 1);
    from.length = message.msg_namelen;
    CHECK(same(from, own_address(b)));
}

static void strangers_are_turned_away(int family) {
    address where, from = {.length = sizeof from.storage};
    int l = listener(family, &where);
    say("listening");
    await(); /* a stranger has connected to the listener's name */
    fcntl(l, F_SETFL, O_NONBLOCK);
    FAILS(accept(l, &from.any, &from.length), EAGAIN);
    int c = dial(where), s = accept(l, &from.any, &from.length);
    CHECK(s >= 0 && same(from, own_address(c)));
    works(c, s);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    int family = family_of(argv[2]);
    const char *what = argv[1];
    if (!strcmp(what, "pair")) both_ends_report_the_same_pair(family);
    else if (!strcmp(what, "cut")) addresses_are_cut_as_the_kernel_cuts_them(family);
    else if (!strcmp(what, "null")) null_addresses_are_allowed(family);
    else if (!strcmp(what, "mapped")) v4_client_of_a_v6_listener_is_mapped();
    else if (!strcmp(what, "received")) received_messages_have_no_sender_as_on_tcp(family);
    else if (!strcmp(what, "destination")) a_destination_is_ignored_as_on_tcp(family);
    else if (!strcmp(what, "other")) other_sockets_keep_their_senders();
    else if (!strcmp(what, "strangers")) strangers_are_turned_away(family);
    else return 2;
    return 0;
}
