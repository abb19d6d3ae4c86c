/* What the runner does with bundles once they are verified and a device is open. */
#ifndef STRUCTADMM_COMMANDS_H
#define STRUCTADMM_COMMANDS_H

#include "network.h"
#include "options.h"

/* The caller's input files for `run`, read and compared with the bundle before OpenCL is loaded. */
struct input_files {
    uint8_t *bytes[MAX_TENSORS];
    struct npy arrays[MAX_TENSORS];
};

int inputs_read(struct input_files *inputs, const struct options *options, const struct plan *plan);
void inputs_free(struct input_files *inputs);

int command_run(const struct options *options, const struct session *session, const struct bundle *bundle,
                const struct input_files *inputs);
int command_check(const struct options *options, const struct session *session, const struct bundle *bundle);
int command_bench(const struct options *options, const struct session *session, const struct bundle *bundles);
int command_profile(const struct options *options, const struct session *session, const struct bundle *bundle);

/* Runs the sample twice and prints the `check` line; STATUS_CHECK where an output is not what the bundle expects. */
int check_network(const struct options *options, const struct network *network);

/* What was loaded and built, as members of the JSON object that is open. */
void print_preparation(const struct options *options, const struct network *network);

#endif
