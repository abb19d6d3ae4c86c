/* Drives a fuzzer without libFuzzer: random mutations of the files it is given, for some seconds.
 *
 *     mutate SECONDS SEED FILE...
 *
 * Blind, so it finds less than libFuzzer does, but it runs with any compiler and in the test suite.
 */
#include "../platform.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SEEDS = 64, MAX_INPUT_BYTES = 1 << 16 };

static uint64_t state;

static uint64_t next_random(void) { /* SplitMix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static size_t below(size_t bound) { return bound == 0 ? 0 : (size_t)(next_random() % bound); }

static size_t insert(uint8_t *input, size_t size, size_t at, const void *piece, size_t length) {
    if (size + length > MAX_INPUT_BYTES) return size;
    memmove(input + at + length, input + at, size - at);
    memcpy(input + at, piece, length);
    return size + length;
}

static size_t delete(uint8_t *input, size_t size, size_t at, size_t length) {
    if (length > size - at) length = size - at;
    memmove(input + at, input + at + length, size - at - length);
    return size - length;
}

static size_t mutate(uint8_t *input, size_t size) {
    static const char *const pieces[] = {"0", "18446744073709551615", "4294967296", "-1", "9223372036854775807", " ", "\n", "\nend\n",
                                         "m0", "f1e999", "fnan", "i-2147483648", "#", "launch ", "buffer ", "part ", "512", "image2d_array ", "../"};
    size_t at = below(size + 1);
    const char *piece = pieces[below(sizeof pieces / sizeof *pieces)];
    uint8_t copied[256];
    size_t length = below(sizeof copied);
    switch (below(6)) {
        case 0:
            if (at < size) input[at] ^= (uint8_t)(1u << below(8));
            return size;
        case 1:
            if (at < size) input[at] = (uint8_t)next_random();
            return size;
        case 2: return insert(input, size, at, piece, strlen(piece));
        case 3: return delete(input, size, at, 1 + below(8));
        case 4: return delete(input, size, at, below(size + 1));
        default:
            if (length > size - at) length = size - at;
            memcpy(copied, input + at, length);
            return insert(input, size, below(size + 1), copied, length);
    }
}

int main(int count, char **words) {
    static uint8_t *seeds[MAX_SEEDS], input[MAX_INPUT_BYTES];
    static size_t sizes[MAX_SEEDS];
    size_t seed_count = 0;
    for (int i = 3; i < count && seed_count < MAX_SEEDS; i++) {
        if (platform_read_file(words[i], MAX_INPUT_BYTES, &seeds[seed_count], &sizes[seed_count]) != READ_OK) return 3;
        seed_count += 1;
    }
    if (seed_count == 0) return 2;
    int64_t end = platform_now_ns() + (int64_t)(strtod(words[1], NULL) * 1e9);
    state = (uint64_t)strtod(words[2], NULL);
    unsigned long long executions = 0;
    for (; platform_now_ns() < end; executions++) {
        size_t seed = below(seed_count), size = sizes[seed];
        memcpy(input, seeds[seed], size);
        for (size_t i = below(6); i > 0; i--) size = mutate(input, size);
        /* A copy of the exact size: a read beyond its end is a finding. */
        uint8_t *exact = malloc(size > 0 ? size : 1);
        if (exact == NULL) return 13;
        memcpy(exact, input, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    char line[64];
    snprintf(line, sizeof line, "%llu executions\n", executions);
    for (size_t i = 0; i < seed_count; i++) free(seeds[i]);
    return platform_write(1, line, strlen(line)) ? 0 : 3;
}
