/* Sends ROUNDS messages of changing size, reads each echo back and compares. Exit 0: every byte came back once and in order. */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) { printf("error: %s\n", what); fflush(stdout); return 1; }

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    signal(SIGPIPE, SIG_IGN);
    int port = atoi(argv[1]);
    long rounds = atol(argv[2]);
    unsigned state = (unsigned)atoi(argv[3]) * 2654435761u + 12345u;
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(s, (struct sockaddr *)&a, sizeof a)) return fail(strerror(errno));
    printf("connected\n");
    fflush(stdout);
    static unsigned char out[9000], in[9000];
    for (long round = 0; round < rounds; round++) {
        state = state * 1664525u + 1013904223u;
        size_t length = 1 + (state >> 8) % 8999;
        for (size_t i = 0; i < length; i++) { state = state * 1664525u + 1013904223u; out[i] = state >> 24; }
        for (size_t done = 0; done < length;) {
            ssize_t n = write(s, out + done, length - done);
            if (n <= 0) return fail(strerror(errno));
            done += n;
        }
        for (size_t done = 0; done < length;) {
            ssize_t n = read(s, in + done, length - done);
            if (n == 0) return fail("end of file");
            if (n < 0) return fail(strerror(errno));
            done += n;
        }
        if (memcmp(in, out, length)) return fail("other bytes");
    }
    close(s);
    return 0;
}
