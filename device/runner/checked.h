/* Arithmetic that says when it does not fit. */
#ifndef STRUCTADMM_CHECKED_H
#define STRUCTADMM_CHECKED_H

#include "platform.h"

static inline bool checked_multiply(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product);
}

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }

/* Whether [offset, offset + size) lies within [0, limit). */
static inline bool range_fits(uint64_t offset, uint64_t size, uint64_t limit) {
    return offset <= limit && size <= limit - offset;
}

#endif
