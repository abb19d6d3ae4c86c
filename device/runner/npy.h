/* Arrays in numpy's .npy format: little-endian, C order, float32, float16 or int32. */
#ifndef STRUCTADMM_NPY_H
#define STRUCTADMM_NPY_H

#include "dtype.h"
#include "status.h"

struct npy {
    enum dtype dtype;
    uint32_t rank;
    uint64_t dims[MAX_RANK];
    const uint8_t *data; /* inside the bytes that were parsed */
    uint64_t size_bytes;
};

/* Reads the array in `bytes`. What is wrong with it is `blame`, except that a short file is STATUS_TRUNCATED. */
int npy_parse(struct npy *array, const uint8_t *bytes, size_t size, const char *name, enum status blame);

/* Writes an array to `path`. */
int npy_write(const char *path, const struct npy *array);

#endif
