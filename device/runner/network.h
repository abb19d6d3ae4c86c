/* A bundle made ready on a device: memory objects, built programs, kernels with their arguments set. */
#ifndef STRUCTADMM_NETWORK_H
#define STRUCTADMM_NETWORK_H

#include "bundle.h"
#include "program_cache.h"
#include "recording.h"

struct network {
    const struct bundle *bundle;
    const struct session *session;
    cl_mem *memories;
    cl_program *programs;
    cl_kernel *kernels; /* one per launch: its arguments never change */
    uint64_t detached_bytes; /* of parts that the driver makes no images of, and that got memory of their own */
    const uint8_t *inputs[MAX_TENSORS];
    uint8_t *outputs[MAX_TENSORS];
    struct recording recording; /* of all launches, where the device records; empty elsewhere */
    double build_ms;            /* programs, kernels and recordings */
    struct cache_counts cache;
};

/* Inputs start as the bundle's samples. On failure the network is empty; `cache` may be NULL. */
int network_open(struct network *network, const struct session *session, const struct bundle *bundle, const char *cache);
void network_close(struct network *network);

/* The three parts of one inference. None allocates memory or touches a file. */
int network_write_inputs(const struct network *network, cl_command_queue queue);
int network_launch(const struct network *network, cl_command_queue queue, cl_event *events); /* events may be NULL */
int network_read_outputs(const struct network *network, cl_command_queue queue);              /* blocks until all is done */

/* Writes the inputs, runs all launches, reads the outputs. */
int network_run(const struct network *network, cl_command_queue queue);

/* Fills every read-write object with NaN, so that a plan that reads what nothing wrote cannot pass a check. */
int network_poison(const struct network *network, cl_command_queue queue);

#endif
