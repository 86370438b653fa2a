/* A disk that does not answer: every sync of a file below STALL_BELOW takes STALL_MS while the file STALL_FLAG exists.
 * Loaded with LD_PRELOAD into the unmodified agent. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void stall(int fd) {
    const char *below = getenv("STALL_BELOW"), *flag = getenv("STALL_FLAG"), *ms = getenv("STALL_MS");
    char link[64], path[4096];
    if (!below || !flag || !ms || access(flag, F_OK) != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return;
    long wait = atol(ms);
    struct timespec pause = {wait / 1000, (wait % 1000) * 1000000L};
    nanosleep(&pause, NULL);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    stall(fd);
    return real(fd);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    stall(fd);
    return real(fd);
}
