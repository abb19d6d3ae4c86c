#ifndef STRUCTADMM_ANDROID_SYS_STAT_H
#define STRUCTADMM_ANDROID_SYS_STAT_H

typedef unsigned int mode_t;

int mkdir(const char *path, mode_t mode);

#endif
