/* A disk that fails: while the file REFUSE_FLAG exists, writing and syncing below REFUSE_BELOW ends with the error number
 * that the file holds. Loaded with LD_PRELOAD into the unmodified program. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refused(int fd) {
    const char *below = getenv("REFUSE_BELOW"), *flag = getenv("REFUSE_FLAG");
    char link[64], path[4096], number[16];
    if (!below || !flag) return 0;
    int told = (int)syscall(SYS_openat, AT_FDCWD, flag, O_RDONLY | O_CLOEXEC, 0);
    if (told < 0) return 0;
    ssize_t length = syscall(SYS_read, told, number, sizeof number - 1);
    syscall(SYS_close, told);
    if (length <= 0) return 0;
    number[length] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return 0;
    errno = atoi(number);
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    REAL(pwrite);
    return refused(fd) ? -1 : real(fd, data, size, place);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    return refused(fd) ? -1 : real(fd, data, size, place);
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return refused(fd) ? -1 : real(fd, data, size);
}
int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return refused(fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return refused(fd) ? -1 : real(fd, size);
}
int fsync(int fd) {
    REAL(fsync);
    return refused(fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return refused(fd) ? -1 : real(fd);
}
