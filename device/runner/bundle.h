/* A bundle on disk, read and verified as docs/bundle-format.md says. */
#ifndef STRUCTADMM_BUNDLE_H
#define STRUCTADMM_BUNDLE_H

#include "npy.h"
#include "plan.h"

enum { MAX_BUNDLE_FILES = 256, MAX_PATH_BYTES = 3072 };

struct bundle_file {
    char name[MAX_NAME_BYTES + 1];
    char digest_hex[65]; /* as SHA256SUMS lists it */
    uint8_t *data;
    size_t size;
};

struct bundle {
    char path[MAX_PATH_BYTES];
    struct bundle_file files[MAX_BUNDLE_FILES];
    uint32_t file_count;
    struct plan plan;
    const struct bundle_file *kernels, *weights;
    struct npy sample_inputs[MAX_TENSORS], sample_outputs[MAX_TENSORS];
    double load_ms; /* reading, hashing and parsing */
};

/* Reads every file and proves that they are what was written. On failure the bundle is empty. */
int bundle_load(struct bundle *bundle, const char *path);

void bundle_free(struct bundle *bundle);

/* Whether `array` is of the tensor's shape and dtype. */
int check_array(const struct plan_tensor *tensor, const struct npy *array, const char *name, enum status blame);

/* SHA256SUMS of `size` bytes as a list of files, without their content. For bundle_load and the fuzzer. */
int sums_parse(struct bundle *bundle, const char *text, size_t size);

#endif
