/* The command line. */
#ifndef STRUCTADMM_OPTIONS_H
#define STRUCTADMM_OPTIONS_H

#include "plan.h"
#include "session.h"

enum { MAX_BUNDLES = 16, MAX_WATCHED = 8 };

enum command { COMMAND_INFO, COMMAND_RUN, COMMAND_CHECK, COMMAND_BENCH, COMMAND_PROFILE, COMMAND_HELP };

struct options {
    enum command command;
    const char *bundles[MAX_BUNDLES];
    uint32_t bundle_count;
    const char *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
    uint32_t input_count, output_count;
    const char *watched[MAX_WATCHED];
    uint32_t watched_count;
    const char *device, *cache; /* NULL when not given */
    struct extras extras;
    bool check; /* before a profile, in the same process */
    uint64_t runs, warmup_runs, warmup_ms, rest_ms, seed, launch_runs, samples;
    uint64_t hot_above, hot_until, hot_rest_ms; /* of the first watched file; 0: never hot */
};

int options_parse(struct options *options, int count, char **words);

extern const char help_text[];

#endif
