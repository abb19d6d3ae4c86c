#ifndef STRUCTADMM_ANDROID_STDLIB_H
#define STRUCTADMM_ANDROID_STDLIB_H

#include <stddef.h>

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void *realloc(void *memory, size_t size);
void free(void *memory);
void qsort(void *first, size_t count, size_t size, int (*compare)(const void *, const void *));
char *getenv(const char *name);
double strtod(const char *text, char **end);
float strtof(const char *text, char **end);

#endif
