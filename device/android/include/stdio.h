/* stdout and stderr are absent on purpose: how libc exports them depends on the Android version. */
#ifndef STRUCTADMM_ANDROID_STDIO_H
#define STRUCTADMM_ANDROID_STDIO_H

#include <stdarg.h>
#include <stddef.h>

int snprintf(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *text, size_t size, const char *format, va_list arguments) __attribute__((format(printf, 3, 0)));
int rename(const char *from, const char *to);

#endif
