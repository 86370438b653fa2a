/* Writes down what a program does to the files below POWER_CUT_BELOW: every change of content and of names, every sync,
 * and the program's own notes, in the order in which they happened, into the file POWER_CUT_LOG.
 *
 * Loaded with LD_PRELOAD into an unmodified Python with its unmodified SQLite. One lock is held over each call and its
 * line in the log, so the log's order is the true one. A change that this layer cannot describe is logged as 'X', and
 * the replayer refuses such a log; one that it does not see at all shows when the whole log is replayed at the end.
 *
 * A line: op (1 byte), inode (8), number (8), lengths of path, second path and data (4 each), then these three.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char below[4096];
static size_t below_length;
static int out = -1;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWER_CUT_BELOW"), *log = getenv("POWER_CUT_LOG");
    if (!folder || !log || below_length) return;
    out = syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0) return;
    snprintf(below, sizeof below, "%s", folder);
    below_length = strlen(below);
    unsetenv("LD_PRELOAD"); /* children are not watched */
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define HOLD pthread_mutex_lock(&lock)
#define RELEASE \
    do { int kept = errno; pthread_mutex_unlock(&lock); errno = kept; } while (0)

static int mine(const char *path) {
    return below_length && path && strncmp(path, below, below_length) == 0
        && (path[below_length] == '/' || path[below_length] == 0);
}

/* Whether the descriptor is of a regular file or folder that is watched; gives its path and inode. */
static int held(int fd, char *path, uint64_t *inode) {
    char link[64];
    struct stat status;
    if (!below_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, 4095);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!mine(path) || fstat(fd, &status) != 0) return 0;
    *inode = status.st_ino;
    return 1;
}

static int memory_of_sqlite(const char *path) { /* its -shm: shared memory that no power cut leaves, and none needs */
    const char *end = strstr(path, "-shm");
    return end && (end[4] == 0 || end[4] == ' ');
}

static void tell(char op, uint64_t inode, uint64_t number, const char *path, const char *second, const void *data,
                 size_t length) {
    uint32_t sizes[3] = {path ? strlen(path) : 0, second ? strlen(second) : 0, length};
    char head[29];
    head[0] = op;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &number, 8);
    memcpy(head + 17, sizes, 12);
    struct iovec parts[4] = {{head, 29}, {(void *)path, sizes[0]}, {(void *)second, sizes[1]}, {(void *)data, length}};
    size_t whole = 29 + (size_t)sizes[0] + sizes[1] + length;
    if (syscall(SYS_writev, out, parts, 4) != (ssize_t)whole) abort(); /* a log with a hole would prove nothing */
}

static int known(int fd, char op, uint64_t number, const void *data, size_t length) {
    char path[4096];
    uint64_t inode;
    if (!held(fd, path, &inode)) return 0;
    if (!memory_of_sqlite(path)) tell(op, inode, number, path, 0, data, length);
    return 1;
}

/* The program's own word at this place of the log. */
void power_cut_note(const char *text, size_t length) {
    if (out < 0) return;
    HOLD;
    tell('N', 0, 0, 0, 0, text, length);
    RELEASE;
}

/* opening */

static int opened(int fd, const char *path, int flags, int existed, uint64_t size) {
    struct stat status;
    if (fd < 0 || !mine(path) || memory_of_sqlite(path) || fstat(fd, &status) != 0) return fd;
    if (flags & __O_TMPFILE & ~O_DIRECTORY) tell('X', 0, 0, path, 0, "O_TMPFILE", 9);
    else if (!existed) tell('C', status.st_ino, status.st_mode & 07777, path, 0, 0, 0);
    else if ((flags & O_TRUNC) && size) tell('T', status.st_ino, 0, path, 0, 0, 0);
    return fd;
}

#define OPENING(call) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    } \
    if (!mine(path)) return call; \
    struct stat before; \
    HOLD; \
    int existed = stat(path, &before) == 0; \
    int fd = opened(call, path, flags, existed, existed ? before.st_size : 0); \
    RELEASE; \
    return fd

int open(const char *path, int flags, ...) { REAL(open); OPENING(real(path, flags, mode)); }
int open64(const char *path, int flags, ...) { REAL(open64); OPENING(real(path, flags, mode)); }
int openat(int at, const char *path, int flags, ...) { REAL(openat); OPENING(real(at, path, flags, mode)); }
int openat64(int at, const char *path, int flags, ...) { REAL(openat64); OPENING(real(at, path, flags, mode)); }

/* content */

ssize_t write(int fd, const void *data, size_t length) {
    REAL(write);
    HOLD;
    ssize_t done = real(fd, data, length);
    char path[4096];
    uint64_t inode;
    if (done > 0 && held(fd, path, &inode)) known(fd, 'W', lseek(fd, 0, SEEK_CUR) - done, data, done);
    RELEASE;
    return done;
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t length, offset_type at) { \
        REAL(name); \
        HOLD; \
        ssize_t done = real(fd, data, length, at); \
        if (done > 0) known(fd, 'W', at, data, done); \
        RELEASE; \
        return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static void parts_written(int fd, const struct iovec *parts, int count, ssize_t done, off_t at) {
    for (int i = 0; i < count && done > 0; i++) {
        size_t piece = parts[i].iov_len < (size_t)done ? parts[i].iov_len : (size_t)done;
        if (piece) known(fd, 'W', at, parts[i].iov_base, piece);
        at += piece;
        done -= piece;
    }
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    HOLD;
    ssize_t done = real(fd, parts, count);
    char path[4096];
    uint64_t inode;
    if (done > 0 && held(fd, path, &inode)) parts_written(fd, parts, count, done, lseek(fd, 0, SEEK_CUR) - done);
    RELEASE;
    return done;
}

#define PWRITEV(name, offset_type) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type at) { \
        REAL(name); \
        HOLD; \
        ssize_t done = real(fd, parts, count, at); \
        if (done > 0) parts_written(fd, parts, count, done, at); \
        RELEASE; \
        return done; \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define TRUNCATE(name, offset_type) \
    int name(int fd, offset_type size) { \
        REAL(name); \
        HOLD; \
        int failed = real(fd, size); \
        if (!failed) known(fd, 'T', size, 0, 0); \
        RELEASE; \
        return failed; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static void grown(int fd, int mode, uint64_t before) { /* allocation shows as a longer file of zeros, or not at all */
    struct stat status;
    if (fstat(fd, &status) != 0) return;
    if (mode & ~FALLOC_FL_KEEP_SIZE) known(fd, 'X', 0, "fallocate", 9);
    else if ((uint64_t)status.st_size != before) known(fd, 'T', status.st_size, 0, 0);
}

#define ALLOCATE(name, offset_type, parameters, arguments, mode) \
    int name parameters { \
        REAL(name); \
        struct stat before; \
        HOLD; \
        uint64_t size = fstat(fd, &before) == 0 ? before.st_size : 0; \
        int failed = real arguments; \
        if (!failed) grown(fd, mode, size); \
        RELEASE; \
        return failed; \
    }
ALLOCATE(fallocate, off_t, (int fd, int how, off_t at, off_t length), (fd, how, at, length), how)
ALLOCATE(fallocate64, off64_t, (int fd, int how, off64_t at, off64_t length), (fd, how, at, length), how)
ALLOCATE(posix_fallocate, off_t, (int fd, off_t at, off_t length), (fd, at, length), 0)
ALLOCATE(posix_fallocate64, off64_t, (int fd, off64_t at, off64_t length), (fd, at, length), 0)

#define MAPPING(name, offset_type) \
    void *name(void *address, size_t length, int protection, int flags, int fd, offset_type at) { \
        REAL(name); \
        if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE)) { \
            HOLD; \
            known(fd, 'X', 0, "mmap", 4); \
            RELEASE; \
        } \
        return real(address, length, protection, flags, fd, at); \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

#define COPYING(name, result, parameters, arguments, target) \
    result name parameters { \
        REAL(name); \
        HOLD; \
        result done = real arguments; \
        if (done > 0) known(target, 'X', 0, #name, sizeof #name - 1); \
        RELEASE; \
        return done; \
    }
COPYING(sendfile, ssize_t, (int to, int from, off_t *at, size_t length), (to, from, at, length), to)
COPYING(sendfile64, ssize_t, (int to, int from, off64_t *at, size_t length), (to, from, at, length), to)
COPYING(copy_file_range, ssize_t,
        (int from, off64_t *from_at, int to, off64_t *at, size_t length, unsigned flags),
        (from, from_at, to, at, length, flags), to)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        HOLD; \
        int failed = real(fd); \
        if (!failed) known(fd, 'S', 0, 0, 0); \
        RELEASE; \
        return failed; \
    }
SYNC(fsync)
SYNC(fdatasync)

/* names */

#define NAMING(name, parameters, arguments, op, path, second, there) \
    int name parameters { \
        REAL(name); \
        HOLD; \
        int failed = real arguments; \
        if (!failed && (mine(path) || mine(second)) && !memory_of_sqlite(path)) { \
            struct stat status; \
            uint64_t inode = stat(there, &status) == 0 ? status.st_ino : 0; \
            tell(op, inode, inode ? status.st_mode & 07777 : 0, path, second, 0, 0); \
        } \
        RELEASE; \
        return failed; \
    }
#define NONE ((const char *)0)
NAMING(unlink, (const char *path), (path), 'U', path, NONE, path)
NAMING(rmdir, (const char *path), (path), 'U', path, NONE, path)
NAMING(unlinkat, (int at, const char *path, int flags), (at, path, flags), 'U', path, NONE, path)
NAMING(mkdir, (const char *path, mode_t mode), (path, mode), 'K', path, NONE, path)
NAMING(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), 'K', path, NONE, path)
NAMING(rename, (const char *from, const char *to), (from, to), 'R', from, to, to)
NAMING(renameat, (int at, const char *from, int at2, const char *to), (at, from, at2, to), 'R', from, to, to)
NAMING(renameat2, (int at, const char *from, int at2, const char *to, unsigned flags), (at, from, at2, to, flags),
       flags ? 'X' : 'R', from, to, to)
NAMING(link, (const char *from, const char *to), (from, to), 'L', from, to, to)
NAMING(linkat, (int at, const char *from, int at2, const char *to, int flags), (at, from, at2, to, flags), 'L', from,
       to, to)
NAMING(symlink, (const char *from, const char *to), (from, to), 'X', from, to, to)
NAMING(truncate, (const char *path, off_t size), (path, size), 'X', path, NONE, path)
NAMING(truncate64, (const char *path, off64_t size), (path, size), 'X', path, NONE, path)
NAMING(chmod, (const char *path, mode_t mode), (path, mode), 'M', path, NONE, path)

int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    HOLD;
    int failed = real(fd, mode);
    if (!failed) known(fd, 'M', mode & 07777, 0, 0);
    RELEASE;
    return failed;
}
