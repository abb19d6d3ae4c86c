/* Building OpenCL programs, from the driver's own binaries where a cache directory holds them. */
#ifndef STRUCTADMM_PROGRAM_CACHE_H
#define STRUCTADMM_PROGRAM_CACHE_H

#include "session.h"

struct program_source {
    uint32_t number; /* in the plan, for messages */
    const char *text;
    size_t size;
    const char *options;
};

/* What happened to the programs built so far. */
struct cache_counts {
    uint32_t hits;
    uint32_t misses;  /* not there yet */
    uint32_t damaged; /* there, but not what was written: replaced */
    uint32_t refused; /* intact, but the driver would not take it: replaced */
};

/* Builds one program. `cache` is a directory, or NULL for none. A binary is only ever used for the source, options,
 * platform, device and driver version that it was made from. */
int program_build(const struct session *session, const char *cache, const struct program_source *source,
                  struct cache_counts *counts, cl_program *program);

#endif
