/* An edge-triggered epoll echo server with accept4 and non-blocking sockets. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer { int fd; size_t from, to; char bytes[65536]; };

static int pump(struct peer *p) {
    for (;;) {
        while (p->from < p->to) {
            ssize_t n = send(p->fd, p->bytes + p->from, p->to - p->from, MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN) return 0;
            if (n <= 0) return -1;
            p->from += n;
        }
        p->from = p->to = 0;
        ssize_t n = recv(p->fd, p->bytes, sizeof p->bytes, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return -1;
        p->to = n;
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), ep = epoll_create1(EPOLL_CLOEXEC);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(l, (struct sockaddr *)&a, sizeof a)) { perror("bind"); return 1; }
    if (listen(l, 128)) { perror("listen"); return 1; }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, l, &e);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(ep, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) {
                int fd;
                while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    p = calloc(1, sizeof *p);
                    p->fd = fd;
                    e = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = p};
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
            } else if (pump(p)) {
                close(p->fd);
                free(p);
            }
        }
    }
}
