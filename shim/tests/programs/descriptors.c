/* Rule 8: the shim keeps no descriptors, takes none of the low numbers, and closing ranges does it no harm. */
#include "check.h"
#include <dirent.h>
#include <sys/resource.h>

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 2000; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void numbers_stay_as_without_a_shim(int family) {
    address where;
    int before = open_descriptors();
    int l = listener(family, &where);
    CHECK(open_descriptors() == before + 1);
    int c = dial(where), s = accept(l, NULL, NULL);
    CHECK(c == l + 1 && s == l + 2 && open_descriptors() == before + 3);
    int value = 1;
    CHECK(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value) == 0);
    CHECK(close(c) == 0 && open_descriptors() == before + 2);
    CHECK(close(s) == 0 && close(l) == 0 && open_descriptors() == before);
}

static void standard_descriptors_stay_closed(int family) {
    close(0), close(1), close(2);
    address where;
    int l = listener(family, &where);
    if (l != 0) _exit(10);
    if (fcntl(1, F_GETFD) != -1 || fcntl(2, F_GETFD) != -1) _exit(11);
    int c = dial(where), s = accept(l, NULL, NULL);
    if (c != 1 || s != 2) _exit(12);
    works(c, s);
    close(c);
    char byte;
    if (read(s, &byte, 1) != 0) _exit(13);
    if (fcntl(1, F_GETFD) != -1) _exit(14);
}

static void ranges_can_be_closed(int family) {
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL), other = dial(where);
    CHECK(close_range(c, c, CLOSE_RANGE_CLOEXEC) == 0 && fcntl(c, F_GETFD) == FD_CLOEXEC);
    works(c, s);
    CHECK(close_range(c, c, 0) == 0 && fcntl(c, F_GETFD) == -1);
    char byte;
    CHECK(read(s, &byte, 1) == 0);
    int t = accept(l, NULL, NULL);
    works(other, t);
    closefrom(l + 1);
    CHECK(fcntl(l, F_GETFD) == 0 && open_descriptors() == l + 1);
    c = dial(where), s = accept(l, NULL, NULL);
    works(c, s);
    CHECK(close_range(3, ~0u, CLOSE_RANGE_UNSHARE) == 0 && open_descriptors() == 3);
    l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    works(c, s);
    FAILS(close_range(9, 3, 0), EINVAL);
}

static void a_low_limit_is_enough(int family) {
    struct rlimit limit = {16, 16};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    address where;
    int l = listener(family, &where), c = dial(where), s = accept(l, NULL, NULL);
    works(c, s);
    /* at the limit */
    while (dup(0) >= 0) {}
    char byte;
    CHECK(close(c) == 0 && read(s, &byte, 1) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    int family = family_of(argv[2]);
    if (!strcmp(argv[1], "numbers")) numbers_stay_as_without_a_shim(family);
    else if (!strcmp(argv[1], "standard")) standard_descriptors_stay_closed(family);
    else if (!strcmp(argv[1], "ranges")) ranges_can_be_closed(family);
    else if (!strcmp(argv[1], "limit")) a_low_limit_is_enough(family);
    else return 2;
    return 0;
}
