/* Everything the runner takes from the operating system, in one place.
 *
 * No other file includes a libc header. Android's libc is declared in ../android/include for builds without its NDK, and
 * ../android/symbols.txt lists what may be used of it: a new function or constant goes into both.
 */
#ifndef STRUCTADMM_PLATFORM_H
#define STRUCTADMM_PLATFORM_H

#include <float.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* libc: malloc calloc realloc free qsort strtod strtof getenv; snprintf vsnprintf; mem* and str*. Nothing else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(size_t) == 8, "sizes in plans are 64 bits wide, and so must size_t be");
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754 floats");

#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))

enum read_result { READ_OK, READ_FAILED, READ_TOO_LARGE, READ_NO_MEMORY };

/* Bytes to be written one after the other. */
struct span {
    const void *data;
    size_t size;
};

int64_t platform_now_ns(void); /* monotonic */
void platform_sleep_ms(uint64_t milliseconds);

/* Reads a whole regular file into memory the caller frees; one zero byte follows its end. */
enum read_result platform_read_file(const char *path, size_t limit, uint8_t **data, size_t *size);

/* Writes a file under a temporary name and renames it: readers see all of it or none. */
bool platform_write_file(const char *path, const struct span *spans, size_t count);

/* The number at the start of a small file such as the kernel's under /sys; NaN where it cannot be read or holds none. */
double platform_read_number(const char *path);

bool platform_is_readable(const char *path);
bool platform_make_directory(const char *path); /* true when it is there afterwards */
bool platform_write(int descriptor, const void *data, size_t size);
const char *platform_error(void); /* why the last call failed */

/* Sends what is written to stderr nowhere until it is unmuted. Not nested. */
void platform_mute_stderr(bool mute);

void *platform_open_library(const char *name);
void *platform_library_symbol(void *library, const char *name);
const char *platform_library_error(void);

#endif
