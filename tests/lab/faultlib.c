/* A disk that fails on command, for tests: loaded before libc, it looks at an order before each
 * call that changes a file. The order is one line in the file that FAULT_ORDER names:
 *
 *     sync raft 5        syncs of files with "raft" in their path fail with errno 5 (EIO)
 *     write conure.db 28 writes to conure.db fail with errno 28 (ENOSPC)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int ordered(const char *call, int fd)
{
    char line[200], wanted[20], part[100], link[64], path[PATH_MAX];
    int number, order = open(getenv("FAULT_ORDER"), O_RDONLY);
    if (order < 0)
        return 0;
    ssize_t size = read(order, line, sizeof line - 1);
    close(order);
    if (size <= 0)
        return 0;
    line[size] = 0;
    if (sscanf(line, "%19s %99s %d", wanted, part, &number) != 3 || strcmp(wanted, call))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return strstr(path, part) ? number : 0;
}

#define FAULTY(type, name, call, parameters, arguments)                 \
    type name parameters                                                \
    {                                                                   \
        static type (*real) parameters;                                 \
        if (!real)                                                      \
            real = (type (*) parameters)dlsym(RTLD_NEXT, #name);        \
        int number = ordered(call, fd);                                 \
        if (!number)                                                    \
            return real arguments;                                      \
        errno = number;                                                 \
        return -1;                                                      \
    }

FAULTY(int, fdatasync, "sync", (int fd), (fd))
FAULTY(int, fsync, "sync", (int fd), (fd))
FAULTY(ssize_t, pwrite, "write", (int fd, const void *data, size_t size, off_t offset),
       (fd, data, size, offset))
FAULTY(ssize_t, pwrite64, "write", (int fd, const void *data, size_t size, off_t offset),
       (fd, data, size, offset))
FAULTY(ssize_t, pwritev, "write", (int fd, const struct iovec *parts, int count, off_t offset),
       (fd, parts, count, offset))
FAULTY(ssize_t, pwritev64, "write", (int fd, const struct iovec *parts, int count, off_t offset),
       (fd, parts, count, offset))
