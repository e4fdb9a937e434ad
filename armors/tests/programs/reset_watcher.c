// Connects, says a line, waits for its echo and leaves it unread, then tells in its own way how the connection ends.
// Usage: reset_watcher PORT WAY
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int signals;

static void on_signal(int signal) {
    (void)signal;
    signals++;
}

static const char *said(ssize_t result) {
    static char texts[8][32];
    static int next;
    char *text = texts[next++ % 8];
    if (result < 0)
        snprintf(text, 32, "%s", strerrorname_np(errno));
    else
        snprintf(text, 32, "%zd", result);
    return text;
}

static ssize_t kernel_read(int fd, void *bytes, size_t length) { return syscall(SYS_read, fd, bytes, length); }

static void hang_up(int fd) {
    struct pollfd entry = {.fd = fd, .events = 0};
    while (!(entry.revents & POLLHUP)) poll(&entry, 1, -1);
}

static const char *error_option(int fd) {
    int value = -1;
    socklen_t length = sizeof value;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length);
    errno = value;
    return value ? said(-1) : "0";
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const char *way = argv[2];
    char bytes[64], megabyte[1 << 16];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct pollfd echo = {.fd = fd, .events = POLLIN};
    if (connect(fd, (void *)&where, sizeof where) || write(fd, "last words\n", 11) != 11 || poll(&echo, 1, -1) != 1) {
        perror("not connected");
        return 1;
    }
    memset(megabyte, 'x', sizeof megabyte);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGPIPE, &action, NULL);
    int blocks = !strcmp(way, "blocked");
    if (blocks) kernel_read(fd, bytes, sizeof bytes);
    puts("connected");
    fflush(stdout);
    if (!blocks) hang_up(fd);

    if (blocks) {
        printf("%s\n", said(kernel_read(fd, bytes, sizeof bytes)));
    } else if (!strcmp(way, "kernel")) {
        printf("%s ", said(kernel_read(fd, bytes, sizeof bytes)));
        printf("%s ", said(kernel_read(fd, bytes, sizeof bytes)));
        printf("%s\n", said(kernel_read(fd, bytes, sizeof bytes)));
    } else if (!strcmp(way, "read")) {
        printf("%s ", said(read(fd, bytes, sizeof bytes)));
        printf("%s\n", said(read(fd, bytes, sizeof bytes)));
    } else if (!strcmp(way, "stdio")) {
        FILE *stream = fdopen(fd, "r");
        printf("%s", fgets(bytes, sizeof bytes, stream) ? bytes : "nothing\n");
        errno = 0;
        const char *line = fgets(bytes, sizeof bytes, stream);
        printf("%s ", line ? line : "nothing");
        printf("%s %s\n", ferror(stream) ? "error" : "no error", said(-1));
    } else if (!strcmp(way, "option")) {
        printf("%s ", error_option(fd));
        printf("%s ", error_option(fd));
        printf("%s ", said(kernel_read(fd, bytes, sizeof bytes)));
        printf("%s\n", said(kernel_read(fd, bytes, sizeof bytes)));
    } else if (!strcmp(way, "poll")) {
        struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
        poll(&entry, 1, 0);
        printf("%#x\n", entry.revents);
    } else if (!strcmp(way, "epoll")) {
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        epoll_wait(set, &event, 1, 0);
        printf("%#x\n", event.events);
    } else if (!strcmp(way, "write")) {
        printf("%s ", said(write(fd, "x", 1)));
        printf("%s ", said(write(fd, "x", 1)));
        printf("signals %d\n", signals);
    } else if (!strcmp(way, "send")) {
        printf("%s ", said(send(fd, "x", 1, MSG_NOSIGNAL)));
        printf("%s ", said(send(fd, "x", 1, MSG_NOSIGNAL)));
        printf("signals %d, then %s\n", signals, error_option(fd));
    } else {
        return 2;
    }
    return 0;
}
