#define _POSIX_C_SOURCE 200809L /* clock_gettime, nanosleep and friends under -std=c11 */

#include "platform.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int64_t platform_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void platform_sleep_ms(uint64_t milliseconds) {
    struct timespec left = {.tv_sec = (time_t)(milliseconds / 1000), .tv_nsec = (long)(milliseconds % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static enum read_result read_open_file(int descriptor, size_t limit, uint8_t **data, size_t *size) {
    off_t end = lseek(descriptor, 0, SEEK_END);
    if (end < 0 || lseek(descriptor, 0, SEEK_SET) != 0) return READ_FAILED;
    if ((uint64_t)end > limit) return READ_TOO_LARGE;
    uint8_t *bytes = malloc((size_t)end + 1);
    if (bytes == NULL) return READ_NO_MEMORY;
    size_t have = 0;
    while (have < (size_t)end) {
        ssize_t got = read(descriptor, bytes + have, (size_t)end - have);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            free(bytes);
            return READ_FAILED;
        }
        if (got == 0) break;
        have += (size_t)got;
    }
    bytes[have] = 0;
    *data = bytes;
    *size = have;
    return READ_OK;
}

enum read_result platform_read_file(const char *path, size_t limit, uint8_t **data, size_t *size) {
    /* O_NONBLOCK: a FIFO in place of a file must not hang the runner; it then fails to seek. */
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return READ_FAILED;
    enum read_result result = read_open_file(descriptor, limit, data, size);
    int reason = errno;
    close(descriptor);
    errno = reason;
    return result;
}

double platform_read_number(const char *path) {
    char text[64];
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return __builtin_nan("");
    ssize_t got = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    if (got <= 0) return __builtin_nan("");
    text[got] = 0;
    char *end;
    double value = strtod(text, &end);
    return end != text ? value : __builtin_nan("");
}

bool platform_write(int descriptor, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t wrote = write(descriptor, bytes, size);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return false;
        bytes += wrote;
        size -= (size_t)wrote;
    }
    return true;
}

static bool write_spans(const char *path, const struct span *spans, size_t count) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) return false;
    bool written = true;
    for (size_t i = 0; written && i < count; i++) written = platform_write(descriptor, spans[i].data, spans[i].size);
    written = written && fsync(descriptor) == 0;
    int reason = errno;
    if (close(descriptor) != 0) return false;
    errno = reason;
    return written;
}

bool platform_write_file(const char *path, const struct span *spans, size_t count) {
    char temporary[4096];
    int length = snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    if (length < 0 || (size_t)length >= sizeof temporary) {
        errno = ENAMETOOLONG;
        return false;
    }
    if (write_spans(temporary, spans, count) && rename(temporary, path) == 0) return true;
    int reason = errno;
    unlink(temporary);
    errno = reason;
    return false;
}

bool platform_is_readable(const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor >= 0) close(descriptor);
    return descriptor >= 0;
}

bool platform_make_directory(const char *path) { return mkdir(path, 0755) == 0 || errno == EEXIST; }

const char *platform_error(void) { return strerror(errno); }

void platform_mute_stderr(bool mute) {
    static int kept = -1;
    if (mute) {
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (nowhere < 0) return;
        kept = fcntl(2, F_DUPFD_CLOEXEC, 3);
        if (kept >= 0) dup2(nowhere, 2);
        close(nowhere);
    } else if (kept >= 0) {
        dup2(kept, 2);
        close(kept);
        kept = -1;
    }
}

void *platform_open_library(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }

void *platform_library_symbol(void *library, const char *name) { return dlsym(library, name); }

const char *platform_library_error(void) {
    const char *why = dlerror();
    return why != NULL ? why : "no reason given";
}
