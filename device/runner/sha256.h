/* SHA-256, as in FIPS 180-4. */
#ifndef STRUCTADMM_SHA256_H
#define STRUCTADMM_SHA256_H

#include "platform.h"

struct sha256 {
    uint32_t state[8];
    uint64_t length_bytes;
    uint8_t block[64];
};

void sha256_start(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const void *data, size_t size);
void sha256_finish(struct sha256 *hash, uint8_t digest[32]);

void sha256_hex(const uint8_t digest[32], char hex[65]);

#endif
