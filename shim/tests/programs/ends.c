/* Rule 10: FIN, half-close and reset travel as such; orderly closes are announced, others are not. */
#include "check.h"
#include <sys/uio.h>

static void fin_and_half_close(int family) {
    int c, s;
    char bytes[8];
    connection(family, &c, &s);
    CHECK(write(c, "question", 8) == 8 && shutdown(c, SHUT_WR) == 0);
    CHECK(recv(s, bytes, 8, MSG_WAITALL) == 8 && read(s, bytes, 8) == 0);
    CHECK(poll_now(s, POLLIN | POLLRDHUP) & POLLRDHUP);
    CHECK(write(s, "answer", 6) == 6 && close(s) == 0);
    CHECK(recv(c, bytes, 6, MSG_WAITALL) == 6 && memcmp(bytes, "answer", 6) == 0);
    CHECK(read(c, bytes, 8) == 0);
    signal(SIGPIPE, SIG_IGN);
    FAILS(write(c, "x", 1), EPIPE);
}

static void reset_is_an_error(int family, const char *by) {
    int c, s;
    char bytes[8];
    struct iovec part = {bytes, 8};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct mmsghdr many = {.msg_hdr = message};
    address from = {.length = sizeof from.storage};
    connection(family, &c, &s);
    CHECK(write(s, "last", 4) == 4 && poll_wait(c, POLLIN) == POLLIN);
    say("connected");
    CHECK(poll_wait(c, 0) & POLLHUP); /* reset by the ARMOR */
    CHECK(read(c, bytes, 8) == 4);
    int fds[] = {c, s};
    for (int i = 0; i < 2; i++) {
        int fd = fds[i];
        poll_wait(fd, 0);
        CHECK(read(fd, bytes, 0) == 0);
        if (!strcmp(by, "read")) FAILS(read(fd, bytes, 8), ECONNRESET);
        if (!strcmp(by, "readv")) FAILS(readv(fd, &part, 1), ECONNRESET);
        if (!strcmp(by, "recv")) FAILS(recv(fd, bytes, 8, 0), ECONNRESET);
        if (!strcmp(by, "peek")) FAILS(recv(fd, bytes, 8, MSG_PEEK | MSG_DONTWAIT), ECONNRESET);
        if (!strcmp(by, "recvfrom")) FAILS(recvfrom(fd, bytes, 8, 0, &from.any, &from.length), ECONNRESET);
        if (!strcmp(by, "recvmsg")) FAILS(recvmsg(fd, &message, 0), ECONNRESET);
        if (!strcmp(by, "recvmmsg")) FAILS(recvmmsg(fd, &many, 1, 0, NULL), ECONNRESET);
    }
}

static void an_orderly_end_is_none(int family) {
    int c, s;
    char bytes[8];
    connection(family, &c, &s);
    CHECK(close(s) == 0);
    for (int i = 0; i < 3; i++) CHECK(read(c, bytes, 8) == 0);
}

/* Leaves in the way that is asked for, with a connected client's socket. */
static void leaving(int family, const char *how, int port) {
    int c = dial(loopback(family, port)), devnull = open("/dev/null", O_RDWR);
    say("connected");
    await();
    struct linger none = {1, 0};
    if (!strcmp(how, "close")) CHECK(close(c) == 0);
    if (!strcmp(how, "aborted")) CHECK(setsockopt(c, SOL_SOCKET, SO_LINGER, &none, sizeof none) == 0 && close(c) == 0);
    if (!strcmp(how, "shutdown")) CHECK(shutdown(c, SHUT_RDWR) == 0);
    if (!strcmp(how, "shutdown_read")) CHECK(shutdown(c, SHUT_RD) == 0);
    if (!strcmp(how, "dup2")) CHECK(dup2(devnull, c) == c);
    if (!strcmp(how, "dup3")) CHECK(dup3(devnull, c, O_CLOEXEC) == c);
    if (!strcmp(how, "fclose")) CHECK(fclose(fdopen(c, "r+")) == 0);
    if (!strcmp(how, "close_range")) CHECK(close_range(c, c, 0) == 0);
    if (!strcmp(how, "closefrom")) closefrom(c);
    if (!strcmp(how, "same")) CHECK(dup2(c, c) == c && close(-1) == -1 && dup2(999, c) == -1);
    if (!strcmp(how, "exit")) exit(0);
    if (!strcmp(how, "_exit")) _exit(0);
    if (!strcmp(how, "_Exit")) _Exit(0);
    if (!strcmp(how, "quick_exit")) quick_exit(0);
    if (!strcmp(how, "failing")) exit(3);
    if (!strcmp(how, "_failing")) _exit(3);
    if (!strcmp(how, "abort")) abort();
    if (!strcmp(how, "kill")) raise(SIGKILL);
    if (!strcmp(how, "segv")) raise(SIGSEGV);
    if (!strcmp(how, "buffered")) {
        /* what is still in a stream's buffer goes out before the socket is closed */
        FILE *stream = fdopen(c, "w");
        CHECK(stream && fputs("from the buffer", stream) >= 0);
        return;
    }
    if (!strcmp(how, "main")) return;
    say("done");
    await();
    _exit(3); /* without a word about what is still open */
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "half")) fin_and_half_close(family);
    else if (!strcmp(argv[1], "reset")) reset_is_an_error(family, argv[3]);
    else if (!strcmp(argv[1], "orderly")) an_orderly_end_is_none(family);
    else if (!strcmp(argv[1], "leave")) leaving(family, argv[3], atoi(argv[4]));
    else return 2;
    return 0;
}
