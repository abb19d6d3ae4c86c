#ifndef STRUCTADMM_ANDROID_DLFCN_H
#define STRUCTADMM_ANDROID_DLFCN_H

#define RTLD_LOCAL 0
#define RTLD_NOW 2 /* 64-bit Android; 0 on 32-bit */

void *dlopen(const char *name, int flags);
void *dlsym(void *library, const char *name);
char *dlerror(void);

#endif
