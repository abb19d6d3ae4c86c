#ifndef STRUCTADMM_ANDROID_TIME_H
#define STRUCTADMM_ANDROID_TIME_H

typedef long time_t;

struct timespec {
    time_t tv_sec;
    long tv_nsec;
};

#define CLOCK_MONOTONIC 1

int clock_gettime(int clock, struct timespec *now);
int nanosleep(const struct timespec *wanted, struct timespec *left);

#endif
