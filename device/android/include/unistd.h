#ifndef STRUCTADMM_ANDROID_UNISTD_H
#define STRUCTADMM_ANDROID_UNISTD_H

#include <stddef.h>

typedef long ssize_t;
typedef long off_t;
typedef int pid_t;

#define SEEK_SET 0
#define SEEK_END 2

int close(int descriptor);
int dup(int descriptor);
int dup2(int descriptor, int as);
int fsync(int descriptor);
off_t lseek(int descriptor, off_t offset, int whence);
pid_t getpid(void);
ssize_t read(int descriptor, void *data, size_t size);
int unlink(const char *path);
ssize_t write(int descriptor, const void *data, size_t size);

#endif
