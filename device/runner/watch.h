/* Numbers that the system keeps in files, such as a clock or a temperature, read between rounds. */
#ifndef STRUCTADMM_WATCH_H
#define STRUCTADMM_WATCH_H

#include "options.h"
#include "statistics.h"

/* Tests build with smaller numbers. */
#ifndef WATCH_SAMPLES
#define WATCH_SAMPLES 4096 /* even */
#endif
#ifndef WATCH_INTERVAL_MS
#define WATCH_INTERVAL_MS 100
#endif

struct watch {
    const struct options *options;
    int64_t start_ns, interval_ns;
    uint32_t count; /* samples taken */
    double at_ms[WATCH_SAMPLES];
    double values[MAX_WATCHED][WATCH_SAMPLES]; /* NaN: not readable then */
    double cooling_ms;
    uint32_t rests;
};

/* Forgets all samples; times count from `start_ns`. */
void watch_begin(struct watch *watch, const struct options *options, int64_t start_ns);

/* Takes a sample, unless the last one is recent and none is demanded. */
void watch_sample(struct watch *watch, bool demanded);

/* Rests while the first file holds more than --hot-above, until it holds no more than --hot-until or the time for
 * rests is used up. */
bool watch_cool_down(struct watch *watch);

/* Prints the "watch" line; nothing where nothing is watched. */
int watch_print(const struct watch *watch);

#endif
