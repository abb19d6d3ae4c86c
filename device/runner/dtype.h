/* Element types of network inputs and outputs. */
#ifndef STRUCTADMM_DTYPE_H
#define STRUCTADMM_DTYPE_H

#include "platform.h"

enum { MAX_RANK = 8 };

enum dtype { DTYPE_FLOAT32, DTYPE_FLOAT16, DTYPE_INT32 };

size_t dtype_size(enum dtype dtype);
const char *dtype_name(enum dtype dtype);
bool dtype_from_name(const char *name, enum dtype *dtype);
double dtype_load(enum dtype dtype, const uint8_t *data, size_t index);

/* Writes "[1, 3, 32, 32]". */
void format_shape(const uint64_t *dims, uint32_t rank, char *text, size_t size);

#endif
