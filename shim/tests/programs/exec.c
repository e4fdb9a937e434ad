/* Rule 6: hooked up across exec, whatever becomes of the environment. */
#include "check.h"
#include <spawn.h>

extern char **environ;

static const char *variable(char **list, const char *key) {
    for (; *list; list++)
        if (!strncmp(*list, key, strlen(key)) && (*list)[strlen(key)] == '=') return *list + strlen(key) + 1;
    return NULL;
}

/* In the new program: still hooked up, and the inherited sockets are known. */
static void arrived(int client, int listener, const char *expected_preload, int arguments) {
    const char *preload = variable(environ, "LD_PRELOAD");
    CHECK(preload && strstr(preload, "libarmor_shim.so"));
    CHECK(!*expected_preload || !strncmp(preload, expected_preload, strlen(expected_preload)));
    const char *first = strstr(preload, "libarmor_shim.so");
    CHECK(!strstr(first + 1, "libarmor_shim.so"));
    CHECK(variable(environ, "ARMOR_RUN_DIR") && variable(environ, "ARMOR_SHIM_PATH"));
    CHECK(variable(environ, "ARMOR_SERVICE") && !strcmp(variable(environ, "ARMOR_SERVICE"), "named"));
    CHECK(arguments == 6); /* none lost, none added */
    address where = own_address(listener);
    CHECK(same(where, peer_address(client)));
    int s = accept(listener, NULL, NULL);
    works(client, s);
    int c = dial(where);
    CHECK(is_swapped(c));
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    const char *how = argv[1];
    int family = family_of(argv[2]);
    if (!strcmp(how, "arrived")) {
        arrived(atoi(argv[3]), atoi(argv[4]), argv[5], argc);
        return 0;
    }
    address where;
    int l = listener(family, &where), c = dial(where);
    char client[16], listening[16], large[300], *self = argv[0];
    snprintf(client, sizeof client, "%d", c);
    snprintf(listening, sizeof listening, "%d", l);
    char *list[] = {self, "arrived", argv[2], client, listening, "", NULL}, *nothing[] = {NULL};
    char *preloaded[] = {"A=1", "LD_PRELOAD=/lib/x86_64-linux-gnu/libdl.so.2", "B=2", NULL};
    char *many[2002];
    for (int i = 0; i < 2000; i++) {
        snprintf(large, sizeof large, "VARIABLE_%d=%0200d", i, i);
        many[i] = strdup(large);
    }
    many[2000] = NULL;
    if (!strcmp(how, "execve")) execve(self, list, nothing);
    if (!strcmp(how, "null")) execve(self, list, NULL);
    if (!strcmp(how, "many")) execve(self, list, many);
    if (!strcmp(how, "kept")) execve(self, list, environ);
    if (!strcmp(how, "appended")) {
        list[5] = "/lib/x86_64-linux-gnu/libdl.so.2:/";
        execve(self, list, preloaded);
    }
    if (!strcmp(how, "execvpe")) execvpe(self, list, nothing);
    if (!strcmp(how, "fexecve")) fexecve(open(self, O_RDONLY | O_CLOEXEC), list, nothing);
    if (!strcmp(how, "execle")) execle(self, self, "arrived", argv[2], client, listening, "", NULL, nothing);
    if (!strcmp(how, "spawn") || !strcmp(how, "spawnp")) {
        pid_t child;
        CHECK((how[5] ? posix_spawnp : posix_spawn)(&child, self, NULL, NULL, list, nothing) == 0);
        reaped(child);
        return 0;
    }
    clearenv();
    if (!strcmp(how, "execv")) execv(self, list);
    if (!strcmp(how, "execvp")) execvp(self, list);
    if (!strcmp(how, "execl")) execl(self, self, "arrived", argv[2], client, listening, "", NULL);
    if (!strcmp(how, "execlp")) execlp(self, self, "arrived", argv[2], client, listening, "", NULL);
    if (!strcmp(how, "vfork")) {
        pid_t child = vfork();
        if (child == 0) {
            execve(self, list, many);
            _exit(9);
        }
        reaped(child);
        return 0;
    }
    perror(how);
    return 3;
}
