#ifndef STRUCTADMM_ANDROID_FCNTL_H
#define STRUCTADMM_ANDROID_FCNTL_H

#define O_RDONLY 0
#define O_WRONLY 01
#define O_CREAT 0100
#define O_TRUNC 01000
#define O_NONBLOCK 04000
#define O_CLOEXEC 02000000
#define F_DUPFD_CLOEXEC 1030

int fcntl(int descriptor, int command, ...);
int open(const char *path, int flags, ...);

#endif
