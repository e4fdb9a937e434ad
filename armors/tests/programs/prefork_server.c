/* A pre-forking echo server: two workers accept on the inherited listener; the master replaces a worker that dies. */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void work(int l) {
    struct pollfd fds[64] = {{.fd = l, .events = POLLIN}};
    int count = 1;
    static char bytes[65536];
    for (;;) {
        if (poll(fds, count, -1) < 0) continue;
        for (int i = count - 1; i > 0; i--) {
            if (!fds[i].revents) continue;
            ssize_t n = read(fds[i].fd, bytes, sizeof bytes);
            if (n > 0) {
                for (ssize_t done = 0; done < n;) {
                    ssize_t k = write(fds[i].fd, bytes + done, n - done);
                    if (k <= 0) { n = 0; break; }
                    done += k;
                }
            }
            if (n <= 0) { close(fds[i].fd); fds[i] = fds[--count]; }
        }
        if (fds[0].revents && count < 64) {
            int fd = accept(l, NULL, NULL);
            if (fd >= 0) fds[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(l, (struct sockaddr *)&a, sizeof a) || listen(l, 128)) { perror("bind"); return 1; }
    for (int i = 0; i < 2; i++)
        if (fork() == 0) work(l);
    for (;;)
        if (wait(NULL) > 0 && fork() == 0) work(l);
}
