/* Preloaded: files below the folder that NO_LOCKS_BELOW names cannot be locked, as on a Lustre that
   is mounted without "-o flock". Without the variable no file can. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int without_locks(int descriptor)
{
    const char *folder = getenv("NO_LOCKS_BELOW");
    if (folder == NULL)
        return 1;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && strncmp(path, folder, strlen(folder)) == 0;
}

static int locks(int command)
{
    return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK ||
           command == F_OFD_SETLKW;
}

static int call(const char *name, int descriptor, int command, void *argument)
{
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
    if (locks(command) && without_locks(descriptor)) {
        errno = ENOLCK;
        return -1;
    }
    return real(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return call("fcntl", descriptor, command, argument);
}

int fcntl64(int descriptor, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return call("fcntl64", descriptor, command, argument);
}

int flock(int descriptor, int operation)
{
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    if (without_locks(descriptor)) {
        errno = ENOLCK;
        return -1;
    }
    return real(descriptor, operation);
}
