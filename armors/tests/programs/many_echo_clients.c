/* Holds COUNT connections in one process with epoll. Each says messages of changing size, one after the other, and compares every
 * echoed byte with what it said. A number on standard input asks for so many more rounds of every connection; when all have made them
 * "done" is printed. At the end of standard input it exits: 0 when every byte came back once and in order. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LONGEST = 512 };

struct peer {
    int fd;
    unsigned state;                 /* of the generator, at the message under way */
    unsigned length, said, heard;   /* of it */
    long left;                      /* rounds */
    unsigned char message[LONGEST];
};

static int failed(int number, const char *what) {
    printf("error: connection %d: %s\n", number, what);
    fflush(stdout);
    return 1;
}

static unsigned next(unsigned *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

static void compose(struct peer *p) {
    p->length = 1 + next(&p->state) % LONGEST;
    p->said = p->heard = 0;
    for (unsigned i = 0; i < p->length; i++) p->message[i] = next(&p->state);
}

/* Goes on until it would block or has made its rounds. 1: it has just made them; 0: not yet; -1: an error, told. */
static int go_on(struct peer *p, int number) {
    while (p->left > 0) {
        while (p->said < p->length) {
            ssize_t n = write(p->fd, p->message + p->said, p->length - p->said);
            if (n < 0 && errno == EAGAIN) break;
            if (n <= 0) return failed(number, n ? strerror(errno) : "nothing was written"), -1;
            p->said += n;
        }
        if (p->said == p->heard) return 0;
        unsigned char echo[LONGEST];
        ssize_t n = read(p->fd, echo, p->said - p->heard);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return failed(number, n ? strerror(errno) : "end of file"), -1;
        if (memcmp(echo, p->message + p->heard, n)) return failed(number, "other bytes"), -1;
        p->heard += n;
        if (p->heard == p->length) {
            compose(p);
            if (--p->left == 0) return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    int port = atoi(argv[1]), count = atoi(argv[2]), ep = epoll_create1(0);
    struct peer *peers = calloc(count, sizeof *peers);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < count; i++) {
        struct peer *p = &peers[i];
        p->state = (unsigned)i * 2654435761u + 12345u;
        compose(p);
        p->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (p->fd < 0 || connect(p->fd, (struct sockaddr *)&a, sizeof a)) return failed(i, strerror(errno));
        if (fcntl(p->fd, F_SETFL, O_NONBLOCK)) return failed(i, strerror(errno));
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = i};
        if (epoll_ctl(ep, EPOLL_CTL_ADD, p->fd, &e)) return failed(i, strerror(errno));
    }
    printf("connected\n");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        long rounds = atol(line);
        int busy = count;
        for (int i = 0; i < count; i++) peers[i].left = rounds;
        for (int i = 0; i < count; i++) {
            int done = go_on(&peers[i], i);
            if (done < 0) return 1;
            busy -= done;
        }
        while (busy > 0) {
            struct epoll_event events[256];
            int n = epoll_wait(ep, events, 256, -1);
            for (int k = 0; k < n; k++) {
                int i = events[k].data.u32, done = go_on(&peers[i], i);
                if (done < 0) return 1;
                busy -= done;
            }
        }
        printf("done\n");
        fflush(stdout);
    }
    return 0;
}
