#ifndef STRUCTADMM_ANDROID_ERRNO_H
#define STRUCTADMM_ANDROID_ERRNO_H

int *__errno(void);
#define errno (*__errno())

#define EINTR 4
#define EEXIST 17
#define ENAMETOOLONG 36

#endif
