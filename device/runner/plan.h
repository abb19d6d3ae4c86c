/* plan.txt as data. The format is described in docs/bundle-format.md. */
#ifndef STRUCTADMM_PLAN_H
#define STRUCTADMM_PLAN_H

#include "dtype.h"
#include "status.h"

enum { PLAN_VERSION = 3 };

/* Bounds far above any real network, so that a bad plan cannot ask for absurd work. */
enum {
    MAX_LINE_BYTES = 4096,
    MAX_NAME_BYTES = 255,
    MAX_PLAN_BYTES = 64 << 20,
    MAX_MEMORIES = 1 << 16,
    MAX_TENSORS = 64,
    MAX_PROGRAMS = 1 << 13,
    MAX_LAUNCHES = 1 << 16,
    MAX_ARGUMENTS = 128, /* of one launch: as many pointers as every device takes */
    MAX_IMAGE_SIDE = 1 << 16,
};
enum { PART_ALIGNMENT = 512 }; /* of a part's offset in its buffer, in bytes */
#define MAX_OBJECT_BYTES ((uint64_t)1 << 32) /* one memory object */
#define MAX_TOTAL_BYTES ((uint64_t)1 << 36)  /* all of them together */

enum memory_kind {
    MEMORY_BUFFER,
    MEMORY_PART,
    MEMORY_CONSTANT,
    MEMORY_IMAGE2D,
    MEMORY_IMAGE2D_ARRAY,
    MEMORY_CONSTANT_IMAGE2D,
    MEMORY_IMAGE1D_BUFFER,
};

struct plan_memory {
    enum memory_kind kind;
    uint64_t size_bytes;           /* of an image: width * height * depth * texel_bytes */
    uint64_t offset;               /* of the constant kinds in weights.bin, of a part in its buffer */
    uint32_t buffer;               /* the earlier object that a part belongs to, or whose texels an image1d_buffer reads */
    uint64_t width, height, depth; /* of images; depth is 1 unless it is an array */
    uint32_t texel_bytes;          /* 16: rgba_float, 8: rgba_half */
};

struct plan_tensor {
    uint32_t memory;
    enum dtype dtype;
    uint32_t rank;
    uint64_t dims[MAX_RANK];
    uint64_t size_bytes;
    const char *name;
    const char *sample_file;
    double tolerance; /* of an output */
};

struct plan_program {
    uint64_t offset, size; /* in kernels.cl */
    const char *options;
};

enum argument_kind { ARGUMENT_MEMORY, ARGUMENT_INT, ARGUMENT_FLOAT };

struct plan_argument {
    enum argument_kind kind;
    uint32_t memory;
    int32_t integer;
    float real;
};

struct plan_launch {
    uint32_t program;
    const char *kernel;
    uint32_t dims;
    size_t global[3], local[3];
    bool local_given;
    uint64_t flops, bytes;
    const char *layer;
    uint32_t first_argument, argument_count;
};

struct plan {
    char *text; /* the names point into it */
    uint32_t version;
    const char *target, *dtype;
    struct plan_memory *memories;
    struct plan_tensor *inputs, *outputs;
    struct plan_program *programs;
    struct plan_launch *launches;
    struct plan_argument *arguments;
    uint32_t memory_count, input_count, output_count, program_count, launch_count, argument_count;
    uint32_t memory_room, input_room, output_room, program_room, launch_room, argument_room;
    uint64_t memory_bytes; /* of all memory objects; parts are their buffer's */
};

/* Whether `text` opens with a version this runner reads: STATUS_NEWER, STATUS_TRUNCATED or STATUS_MALFORMED if not. */
int plan_check_version(const char *text, size_t size);

/* Parses a whole plan. On failure the plan is empty; either way plan_free() is safe. */
int plan_parse(struct plan *plan, const char *text, size_t size);

/* Whether the programs and constants lie inside kernels.cl and weights.bin. */
int plan_check_ranges(const struct plan *plan, uint64_t kernels_bytes, uint64_t weights_bytes);

/* How long those files must be at the least. */
uint64_t plan_kernels_bytes(const struct plan *plan);
uint64_t plan_weights_bytes(const struct plan *plan);

/* Whether two memory objects have a byte in common. */
bool plan_share_bytes(const struct plan *plan, uint32_t one, uint32_t other);

/* A file name without directories, not hidden. */
bool is_plain_file_name(const char *name);

void plan_free(struct plan *plan);

#endif
