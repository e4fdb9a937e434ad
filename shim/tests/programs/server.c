/* Prints its port, accepts for ever and echoes each connection until its end; a line of input ends it. */
#include "check.h"

static void *echoes(void *argument) {
    int s = (int)(long)argument;
    char bytes[4096];
    ssize_t n;
    while ((n = read(s, bytes, sizeof bytes)) > 0) {
        fwrite(bytes, 1, n, stdout);
        putchar('\n');
        fflush(stdout);
        if (write(s, bytes, n) != n) break;
    }
    printf("end %s\n", n == 0 ? "orderly" : strerror(errno));
    fflush(stdout);
    close(s);
    return NULL;
}

static void *accepts(void *argument) {
    int l = *(int *)argument, s;
    while ((s = accept(l, NULL, NULL)) >= 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, echoes, (void *)(long)s);
        pthread_detach(thread);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    address where;
    int l = listener(family_of(argv[1]), &where);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, accepts, &l) == 0);
    printf("port %d\n", port_of(where));
    fflush(stdout);
    await();
    return 0;
}
