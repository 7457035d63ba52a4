/* Preloaded into a daemon: calls that write or sync a file whose path contains the word in FAULT_MATCH fail with
   FAULT_ERRNO while the file named by FAULT_SWITCH exists. Reaches what Python cannot patch: LMDB's own calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int refuses(int fd) {
    const char *word = getenv("FAULT_MATCH"), *lever = getenv("FAULT_SWITCH"), *code = getenv("FAULT_ERRNO");
    char link[64], path[512];
    if (!word || !lever || access(lever, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, word)) return 0;
    errno = code ? atoi(code) : EIO;
    return 1;
}

#define WRAP(result, name, signature, arguments)                \
    result name signature {                                     \
        static result(*real) signature;                         \
        if (!real) real = dlsym(RTLD_NEXT, #name);              \
        return refuses(fd) ? -1 : real arguments;               \
    }

WRAP(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRAP(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, fdatasync, (int fd), (fd))
