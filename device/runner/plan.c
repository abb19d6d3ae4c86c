#include "plan.h"

#include "checked.h"
#include "plan_line.h"

static const char magic[] = "structadmm-plan ";

static int take_version(const char *text, size_t size, uint32_t *taken) {
    size_t prefix = sizeof magic - 1;
    size_t common = size < prefix ? size : prefix;
    if (memcmp(text, magic, common) != 0) {
        return fail(STATUS_MALFORMED, "plan.txt does not start with '%sVERSION': this is not a bundle, or it is damaged", magic);
    }
    uint64_t version = 0;
    size_t at = prefix;
    while (at < size && text[at] >= '0' && text[at] <= '9' && version < 1000000000) {
        version = version * 10 + (uint64_t)(text[at++] - '0');
    }
    if (at >= size) {
        return fail(STATUS_TRUNCATED, "plan.txt ends inside its first line (%zu bytes): copy the bundle again", size);
    }
    if (at == prefix || text[at] != '\n' || version == 0) {
        return fail(STATUS_MALFORMED, "plan.txt line 1: expected '%sVERSION': rebuild the bundle", magic);
    }
    if (version > PLAN_VERSION) {
        return fail(STATUS_NEWER, "bundle format %llu is newer than %d, the newest this runner reads: update the runner",
                    (unsigned long long)version, PLAN_VERSION);
    }
    *taken = (uint32_t)version;
    return STATUS_OK;
}

int plan_check_version(const char *text, size_t size) {
    uint32_t version;
    return take_version(text, size, &version);
}

struct array {
    void *items; /* the address of a pointer to the first item, whatever its type */
    uint32_t *count, *room;
    size_t item_size;
    const char *what;
};

/* The members NAME_count and NAME_room of a plan and the array that they describe. */
#define ARRAY(plan, name, plural) \
    ((struct array){&(plan)->plural, &(plan)->name##_count, &(plan)->name##_room, sizeof *(plan)->plural, #plural})

/* Appends one zeroed item. */
static int append(struct array array, uint32_t limit, void *pointer_to_item) {
    if (*array.count == limit) {
        return fail(STATUS_MALFORMED, "plan.txt has more than %u %s: rebuild the bundle", limit, array.what);
    }
    void *items;
    memcpy(&items, array.items, sizeof items);
    if (*array.count == *array.room) {
        uint32_t larger = *array.room == 0 ? 16 : *array.room * 2;
        items = realloc(items, larger * array.item_size);
        if (items == NULL) return fail(STATUS_MEMORY, "out of memory for %u %s of plan.txt", larger, array.what);
        memcpy(array.items, &items, sizeof items);
        *array.room = larger;
    }
    void *item = (char *)items + *array.count * array.item_size;
    memset(item, 0, array.item_size);
    *array.count += 1;
    memcpy(pointer_to_item, &item, sizeof item);
    return STATUS_OK;
}

static int parse_text(struct plan_line *line, const char **field) {
    int status = take_name(line, "a name", field);
    return status != STATUS_OK ? status : take_end(line);
}

static int take_texel(struct plan_line *line, uint32_t *texel_bytes) {
    const char *format;
    int status = take_name(line, "an image format", &format);
    if (status != STATUS_OK) return status;
    *texel_bytes = strcmp(format, "rgba_float") == 0 ? 16 : strcmp(format, "rgba_half") == 0 ? 8 : 0;
    if (*texel_bytes != 0) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: expected rgba_float or rgba_half, got '%.40s': rebuild the bundle",
                line->number, format);
}

static int parse_image(struct plan_line *line, struct plan_memory *memory) {
    int status = take_uint(line, "a width", 1, MAX_IMAGE_SIDE, &memory->width);
    if (status == STATUS_OK) status = take_uint(line, "a height", 1, MAX_IMAGE_SIDE, &memory->height);
    memory->depth = 1;
    if (status == STATUS_OK && memory->kind == MEMORY_IMAGE2D_ARRAY) {
        status = take_uint(line, "a depth", 1, MAX_IMAGE_SIDE, &memory->depth);
    }
    if (status == STATUS_OK) status = take_texel(line, &memory->texel_bytes);
    if (status != STATUS_OK) return status;
    /* 2^16 * 2^16 * 2^16 * 2^4 < 2^64 */
    memory->size_bytes = memory->width * memory->height * memory->depth * memory->texel_bytes;
    if (memory->size_bytes <= MAX_OBJECT_BYTES) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: an image of %llu bytes exceeds the largest allowed, %llu: rebuild the bundle",
                line->number, (unsigned long long)memory->size_bytes, (unsigned long long)MAX_OBJECT_BYTES);
}

static int parse_part(const struct plan *plan, struct plan_line *line, struct plan_memory *memory) {
    int status = take_index(line, "the memory ID of a buffer", plan->memory_count - 1, &memory->buffer);
    if (status == STATUS_OK) status = take_uint(line, "an offset in the buffer", 0, MAX_OBJECT_BYTES, &memory->offset);
    if (status == STATUS_OK) status = take_uint(line, "a size in bytes", 1, MAX_OBJECT_BYTES, &memory->size_bytes);
    if (status != STATUS_OK) return status;
    const struct plan_memory *buffer = &plan->memories[memory->buffer];
    if (buffer->kind != MEMORY_BUFFER || !range_fits(memory->offset, memory->size_bytes, buffer->size_bytes)) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: a part is bytes [%llu, +%llu) of memory object %u, which is %s of %llu: rebuild the bundle",
                    line->number, (unsigned long long)memory->offset, (unsigned long long)memory->size_bytes, memory->buffer,
                    buffer->kind == MEMORY_BUFFER ? "a buffer" : "no buffer, but something", (unsigned long long)buffer->size_bytes);
    }
    if (memory->offset % PART_ALIGNMENT == 0) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: a part begins at byte %llu, expected a multiple of %d: rebuild the bundle",
                line->number, (unsigned long long)memory->offset, PART_ALIGNMENT);
}

static int parse_view(const struct plan *plan, struct plan_line *line, struct plan_memory *memory) {
    int status = take_index(line, "the memory ID of a buffer", plan->memory_count - 1, &memory->buffer);
    if (status == STATUS_OK) status = take_uint(line, "a number of texels", 1, MAX_OBJECT_BYTES, &memory->width);
    if (status == STATUS_OK) status = take_texel(line, &memory->texel_bytes);
    if (status != STATUS_OK) return status;
    memory->height = memory->depth = 1;
    memory->size_bytes = memory->width * memory->texel_bytes; /* at most 2^36 */
    const struct plan_memory *source = &plan->memories[memory->buffer];
    bool plain = source->kind == MEMORY_BUFFER || source->kind == MEMORY_PART || source->kind == MEMORY_CONSTANT;
    if (plain && memory->size_bytes <= source->size_bytes) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: an image of %llu bytes of memory object %u, which is %s of %llu: rebuild the bundle",
                line->number, (unsigned long long)memory->size_bytes, memory->buffer,
                plain ? "a buffer" : "no buffer, but something", (unsigned long long)source->size_bytes);
}

static int parse_memory(struct plan *plan, struct plan_line *line, enum memory_kind kind) {
    uint64_t id;
    int status = take_uint(line, "the next memory ID", plan->memory_count, plan->memory_count, &id);
    if (status != STATUS_OK) return status;
    struct plan_memory *memory;
    status = append(ARRAY(plan, memory, memories), MAX_MEMORIES, &memory);
    if (status != STATUS_OK) return status;
    memory->kind = kind;
    if (kind == MEMORY_BUFFER || kind == MEMORY_CONSTANT) {
        status = take_uint(line, "a size in bytes", 1, MAX_OBJECT_BYTES, &memory->size_bytes);
    } else if (kind == MEMORY_PART) {
        status = parse_part(plan, line, memory);
    } else if (kind == MEMORY_IMAGE1D_BUFFER) {
        status = parse_view(plan, line, memory);
    } else {
        status = parse_image(line, memory);
    }
    if (status == STATUS_OK && (kind == MEMORY_CONSTANT || kind == MEMORY_CONSTANT_IMAGE2D)) {
        status = take_uint(line, "an offset in weights.bin", 0, INT64_MAX, &memory->offset);
    }
    if (status != STATUS_OK) return status;
    bool own = kind != MEMORY_PART && kind != MEMORY_IMAGE1D_BUFFER;
    if (own) plan->memory_bytes += memory->size_bytes; /* at most 2^16 objects of 2^32 bytes */
    if (plan->memory_bytes > MAX_TOTAL_BYTES) {
        return fail(STATUS_MALFORMED, "plan.txt asks for more than %llu bytes of memory objects: rebuild the bundle",
                    (unsigned long long)MAX_TOTAL_BYTES);
    }
    return take_end(line);
}

static int take_dims(struct plan_line *line, struct plan_tensor *tensor) {
    uint64_t rank;
    int status = take_uint(line, "a rank", 1, MAX_RANK, &rank);
    if (status != STATUS_OK) return status;
    tensor->rank = (uint32_t)rank;
    tensor->size_bytes = dtype_size(tensor->dtype);
    for (uint32_t i = 0; i < tensor->rank; i++) {
        status = take_uint(line, "a dimension", 1, MAX_OBJECT_BYTES, &tensor->dims[i]);
        if (status != STATUS_OK) return status;
        if (!checked_multiply(tensor->size_bytes, tensor->dims[i], &tensor->size_bytes)) {
            return fail(STATUS_MALFORMED, "plan.txt line %u: the shape has more elements than 64 bits count: rebuild the bundle",
                        line->number);
        }
    }
    return STATUS_OK;
}

static int parse_tensor(struct plan *plan, struct plan_line *line, struct plan_tensor *tensor) {
    const char *dtype;
    int status = take_index(line, "a memory ID", plan->memory_count, &tensor->memory);
    if (status == STATUS_OK) status = take_name(line, "a dtype", &dtype);
    if (status != STATUS_OK) return status;
    if (!dtype_from_name(dtype, &tensor->dtype)) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: expected float32, float16 or int32, got '%.40s': rebuild the bundle",
                    line->number, dtype);
    }
    status = take_dims(line, tensor);
    if (status == STATUS_OK) status = parse_text(line, &tensor->name);
    if (status != STATUS_OK) return status;
    const struct plan_memory *memory = &plan->memories[tensor->memory];
    bool plain = memory->kind == MEMORY_BUFFER || memory->kind == MEMORY_PART;
    if (plain && memory->size_bytes >= tensor->size_bytes) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: '%s' needs a buffer of %llu bytes, memory object %u is %s of %llu: rebuild the bundle",
                line->number, tensor->name, (unsigned long long)tensor->size_bytes, tensor->memory,
                plain ? "one" : "no buffer, but something", (unsigned long long)memory->size_bytes);
}

static int parse_input(struct plan *plan, struct plan_line *line) {
    struct plan_tensor *tensor;
    int status = append(ARRAY(plan, input, inputs), MAX_TENSORS, &tensor);
    return status != STATUS_OK ? status : parse_tensor(plan, line, tensor);
}

static int parse_output(struct plan *plan, struct plan_line *line) {
    struct plan_tensor *tensor;
    int status = append(ARRAY(plan, output, outputs), MAX_TENSORS, &tensor);
    return status != STATUS_OK ? status : parse_tensor(plan, line, tensor);
}

bool is_plain_file_name(const char *name) { return is_name(name) && name[0] != '.' && strpbrk(name, "/:") == NULL; }

static int parse_sample(struct plan *plan, struct plan_line *line) {
    const char *side, *file;
    uint32_t index;
    int status = take_name(line, "'input' or 'output'", &side);
    if (status != STATUS_OK) return status;
    bool output = strcmp(side, "output") == 0;
    if (!output && strcmp(side, "input") != 0) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: expected 'input' or 'output', got '%.40s': rebuild the bundle", line->number, side);
    }
    status = take_index(line, "the number of an input or output", output ? plan->output_count : plan->input_count, &index);
    if (status == STATUS_OK) status = take_name(line, "a file name", &file);
    if (status != STATUS_OK) return status;
    struct plan_tensor *tensor = output ? &plan->outputs[index] : &plan->inputs[index];
    if (!is_plain_file_name(file) || tensor->sample_file != NULL) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: '%.80s' %s: rebuild the bundle", line->number, file,
                    tensor->sample_file != NULL ? "is a second sample for one tensor" : "is not a plain file name");
    }
    tensor->sample_file = file;
    if (output) status = take_tolerance(line, &tensor->tolerance);
    return status != STATUS_OK ? status : take_end(line);
}

static int parse_program(struct plan *plan, struct plan_line *line) {
    uint64_t id;
    int status = take_uint(line, "the next program ID", plan->program_count, plan->program_count, &id);
    if (status != STATUS_OK) return status;
    struct plan_program *program;
    status = append(ARRAY(plan, program, programs), MAX_PROGRAMS, &program);
    if (status != STATUS_OK) return status;
    status = take_uint(line, "an offset in kernels.cl", 0, INT64_MAX, &program->offset);
    if (status == STATUS_OK) status = take_uint(line, "a size in kernels.cl", 1, INT64_MAX, &program->size);
    program->options = line->rest != NULL ? line->rest : "";
    return status;
}

static int take_sizes(struct plan_line *line, struct plan_launch *launch) {
    uint64_t value;
    uint32_t zeros = 0;
    for (uint32_t i = 0; i < launch->dims; i++) {
        int status = take_uint(line, "a global size", 1, UINT32_MAX, &value);
        if (status != STATUS_OK) return status;
        launch->global[i] = (size_t)value;
    }
    for (uint32_t i = 0; i < launch->dims; i++) {
        int status = take_uint(line, "a local size", 0, UINT32_MAX, &value);
        if (status != STATUS_OK) return status;
        launch->local[i] = (size_t)value;
        zeros += value == 0;
    }
    launch->local_given = zeros == 0;
    if (zeros == launch->dims) return STATUS_OK;
    for (uint32_t i = 0; i < launch->dims; i++) {
        if (launch->local[i] != 0 && launch->global[i] % launch->local[i] == 0) continue;
        return fail(STATUS_MALFORMED, "plan.txt line %u: global size %zu is not a multiple of local size %zu: rebuild the bundle",
                    line->number, launch->global[i], launch->local[i]);
    }
    return STATUS_OK;
}

static int take_arguments(struct plan *plan, struct plan_line *line, struct plan_launch *launch) {
    uint64_t count;
    int status = take_uint(line, "the number of kernel arguments", 0, MAX_ARGUMENTS, &count);
    launch->first_argument = plan->argument_count;
    launch->argument_count = (uint32_t)count;
    for (uint64_t i = 0; status == STATUS_OK && i < count; i++) {
        struct plan_argument *argument;
        status = append(ARRAY(plan, argument, arguments), (uint32_t)MAX_LAUNCHES * MAX_ARGUMENTS, &argument);
        if (status == STATUS_OK) status = take_argument(line, argument);
        if (status == STATUS_OK && argument->kind == ARGUMENT_MEMORY && argument->memory >= plan->memory_count) {
            status = fail(STATUS_MALFORMED, "plan.txt line %u: m%u does not exist, there are %u memory objects: rebuild the bundle",
                          line->number, argument->memory, plan->memory_count);
        }
    }
    return status;
}

struct extent {
    uint32_t object;     /* that is allocated */
    uint64_t start, end; /* bytes of it, at most 2^33 */
};

static struct extent extent_of(const struct plan *plan, uint32_t id) {
    const struct plan_memory *memory = &plan->memories[id];
    uint64_t size = memory->size_bytes;
    if (memory->kind == MEMORY_IMAGE1D_BUFFER) {
        id = memory->buffer;
        memory = &plan->memories[id];
    }
    if (memory->kind != MEMORY_PART) return (struct extent){id, 0, size};
    return (struct extent){memory->buffer, memory->offset, memory->offset + size};
}

bool plan_share_bytes(const struct plan *plan, uint32_t one, uint32_t other) {
    struct extent a = extent_of(plan, one), b = extent_of(plan, other);
    return a.object == b.object && a.start < b.end && b.start < a.end;
}

/* OpenCL leaves undefined what becomes of memory that a kernel writes to through one object and uses through another. */
static int check_disjoint(const struct plan *plan, const struct plan_line *line, const struct plan_launch *launch) {
    for (uint32_t i = 1; i < launch->argument_count; i++) {
        const struct plan_argument *arguments = &plan->arguments[launch->first_argument];
        if (arguments[i].kind != ARGUMENT_MEMORY) continue;
        for (uint32_t k = 0; k < i; k++) {
            if (arguments[k].kind != ARGUMENT_MEMORY || arguments[k].memory == arguments[i].memory) continue;
            if (!plan_share_bytes(plan, arguments[k].memory, arguments[i].memory)) continue;
            return fail(STATUS_MALFORMED, "plan.txt line %u: m%u and m%u of one launch share bytes: rebuild the bundle", line->number,
                        arguments[k].memory, arguments[i].memory);
        }
    }
    return STATUS_OK;
}

static int parse_launch(struct plan *plan, struct plan_line *line) {
    struct plan_launch *launch;
    uint64_t dims = 0;
    int status = append(ARRAY(plan, launch, launches), MAX_LAUNCHES, &launch);
    if (status == STATUS_OK) status = take_index(line, "a program ID", plan->program_count, &launch->program);
    if (status == STATUS_OK) status = take_name(line, "a kernel name", &launch->kernel);
    if (status == STATUS_OK) status = take_uint(line, "a number of dimensions", 1, 3, &dims);
    launch->dims = (uint32_t)dims;
    if (status == STATUS_OK) status = take_sizes(line, launch);
    if (status == STATUS_OK) status = take_uint(line, "a count of FLOPs", 0, INT64_MAX, &launch->flops);
    if (status == STATUS_OK) status = take_uint(line, "a count of bytes", 0, INT64_MAX, &launch->bytes);
    if (status == STATUS_OK) status = take_name(line, "a layer name", &launch->layer);
    if (status == STATUS_OK) status = take_arguments(plan, line, launch);
    if (status == STATUS_OK) status = check_disjoint(plan, line, launch);
    return status != STATUS_OK ? status : take_end(line);
}

/* The sections, in the order they must come in. */
enum section { FIRST, TARGET, DTYPE, MEMORY, INPUT, OUTPUT, SAMPLE, PROGRAM, LAUNCH, END };

struct keyword {
    const char *word;
    enum section section;
    enum memory_kind kind;
    uint32_t since; /* the first version that has it */
};

static const struct keyword keywords[] = {
    {"target", TARGET, 0, 1},
    {"dtype", DTYPE, 0, 1},
    {"buffer", MEMORY, MEMORY_BUFFER, 1},
    {"part", MEMORY, MEMORY_PART, 2},
    {"constant", MEMORY, MEMORY_CONSTANT, 1},
    {"image2d", MEMORY, MEMORY_IMAGE2D, 1},
    {"image2d_array", MEMORY, MEMORY_IMAGE2D_ARRAY, 1},
    {"constant_image2d", MEMORY, MEMORY_CONSTANT_IMAGE2D, 1},
    {"image1d_buffer", MEMORY, MEMORY_IMAGE1D_BUFFER, 3},
    {"input", INPUT, 0, 1},
    {"output", OUTPUT, 0, 1},
    {"sample", SAMPLE, 0, 1},
    {"program", PROGRAM, 0, 1},
    {"launch", LAUNCH, 0, 1},
    {"end", END, 0, 1},
};

static const struct keyword *find_keyword(const char *word) {
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        if (strcmp(keywords[i].word, word) == 0) return &keywords[i];
    }
    return NULL;
}

static int parse_section(struct plan *plan, struct plan_line *line, const struct keyword *keyword) {
    switch (keyword->section) {
        case TARGET: return parse_text(line, &plan->target);
        case DTYPE: return parse_text(line, &plan->dtype);
        case MEMORY: return parse_memory(plan, line, keyword->kind);
        case INPUT: return parse_input(plan, line);
        case OUTPUT: return parse_output(plan, line);
        case SAMPLE: return parse_sample(plan, line);
        case PROGRAM: return parse_program(plan, line);
        case LAUNCH: return parse_launch(plan, line);
        default: return take_end(line);
    }
}

static int parse_line(struct plan *plan, struct plan_line *line, enum section *section) {
    const char *word;
    int status = take_word(line, "a keyword", &word);
    if (status != STATUS_OK) return status;
    const struct keyword *keyword = find_keyword(word);
    if (keyword == NULL) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: unknown keyword '%.40s': rebuild the bundle", line->number, word);
    }
    if (plan->version < keyword->since) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: '%s' came with bundle format %u, the plan says %u: rebuild the bundle",
                    line->number, word, keyword->since, plan->version);
    }
    bool once = keyword->section == TARGET || keyword->section == DTYPE;
    if (keyword->section < *section || (once && keyword->section == *section)) {
        return fail(STATUS_MALFORMED, "plan.txt line %u: '%s' is out of order: rebuild the bundle", line->number, word);
    }
    *section = keyword->section;
    return parse_section(plan, line, keyword);
}

/* Ends the line at `text` with a zero byte and finds the next one. */
static int cut_line(char *text, const char *end, uint32_t number, char **next) {
    char *newline = memchr(text, '\n', (size_t)(end - text));
    if (newline == NULL) {
        return fail(STATUS_TRUNCATED, "plan.txt ends inside line %u: copy the bundle again", number);
    }
    if (newline - text > MAX_LINE_BYTES) {
        return fail(STATUS_MALFORMED, "plan.txt line %u is longer than %d bytes: rebuild the bundle", number, MAX_LINE_BYTES);
    }
    for (const char *c = text; c < newline; c++) {
        if (*c >= 0x20 && *c <= 0x7e) continue;
        return fail(STATUS_MALFORMED, "plan.txt line %u holds byte 0x%02x, which is not printable ASCII: rebuild the bundle",
                    number, (unsigned char)*c);
    }
    *newline = 0;
    *next = newline + 1;
    return STATUS_OK;
}

static int parse_lines(struct plan *plan, const char *end) {
    enum section section = FIRST;
    struct plan_line line = {.number = 0};
    for (char *text = plan->text, *next = NULL; text < end; text = next) {
        line.number += 1;
        int status = cut_line(text, end, line.number, &next);
        if (status != STATUS_OK) return status;
        if (line.number == 1 || text[0] == 0 || text[0] == '#') continue; /* line 1 is the version, checked before */
        if (section == END) {
            return fail(STATUS_MALFORMED, "plan.txt line %u follows 'end': rebuild the bundle", line.number);
        }
        line.rest = text;
        status = parse_line(plan, &line, &section);
        if (status != STATUS_OK) return status;
    }
    if (section == END) return STATUS_OK;
    return fail(STATUS_TRUNCATED, "plan.txt ends after line %u without 'end': copy the bundle again", line.number);
}

static int check_samples(const struct plan_tensor *tensors, uint32_t count, const char *side) {
    for (uint32_t i = 0; i < count; i++) {
        if (tensors[i].sample_file == NULL) {
            return fail(STATUS_MALFORMED, "plan.txt has no sample for %s %u ('%s'): rebuild the bundle", side, i, tensors[i].name);
        }
    }
    return STATUS_OK;
}

static int check_complete(const struct plan *plan) {
    const char *missing = plan->target == NULL        ? "target"
                          : plan->dtype == NULL       ? "dtype"
                          : plan->input_count == 0    ? "input"
                          : plan->output_count == 0   ? "output"
                          : plan->launch_count == 0   ? "launch"
                                                      : NULL;
    if (missing != NULL) return fail(STATUS_MALFORMED, "plan.txt has no '%s' line: rebuild the bundle", missing);
    int status = check_samples(plan->inputs, plan->input_count, "input");
    return status != STATUS_OK ? status : check_samples(plan->outputs, plan->output_count, "output");
}

int plan_parse(struct plan *plan, const char *text, size_t size) {
    memset(plan, 0, sizeof *plan);
    int status = take_version(text, size, &plan->version);
    if (status != STATUS_OK) return status;
    if (size > MAX_PLAN_BYTES) {
        return fail(STATUS_MALFORMED, "plan.txt has %zu bytes, more than the %d allowed: rebuild the bundle", size, MAX_PLAN_BYTES);
    }
    plan->text = malloc(size + 1);
    if (plan->text == NULL) return fail(STATUS_MEMORY, "out of memory for plan.txt (%zu bytes)", size);
    memcpy(plan->text, text, size);
    plan->text[size] = 0;
    status = parse_lines(plan, plan->text + size);
    if (status == STATUS_OK) status = check_complete(plan);
    if (status != STATUS_OK) plan_free(plan);
    return status;
}

uint64_t plan_kernels_bytes(const struct plan *plan) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < plan->program_count; i++) {
        uint64_t last = plan->programs[i].offset + plan->programs[i].size; /* both at most INT64_MAX */
        if (last > end) end = last;
    }
    return end;
}

static bool is_constant(const struct plan_memory *memory) {
    return memory->kind == MEMORY_CONSTANT || memory->kind == MEMORY_CONSTANT_IMAGE2D;
}

uint64_t plan_weights_bytes(const struct plan *plan) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < plan->memory_count; i++) {
        const struct plan_memory *memory = &plan->memories[i];
        uint64_t last = memory->offset + memory->size_bytes; /* INT64_MAX + 2^32 at the most */
        if (is_constant(memory) && last > end) end = last;
    }
    return end;
}

int plan_check_ranges(const struct plan *plan, uint64_t kernels_bytes, uint64_t weights_bytes) {
    for (uint32_t i = 0; i < plan->program_count; i++) {
        const struct plan_program *program = &plan->programs[i];
        if (range_fits(program->offset, program->size, kernels_bytes)) continue;
        return fail(STATUS_MALFORMED, "program %u is kernels.cl[%llu, +%llu), and the file has %llu bytes: rebuild the bundle", i,
                    (unsigned long long)program->offset, (unsigned long long)program->size, (unsigned long long)kernels_bytes);
    }
    for (uint32_t i = 0; i < plan->memory_count; i++) {
        const struct plan_memory *memory = &plan->memories[i];
        if (!is_constant(memory) || range_fits(memory->offset, memory->size_bytes, weights_bytes)) continue;
        return fail(STATUS_MALFORMED, "constant %u is weights.bin[%llu, +%llu), and the file has %llu bytes: rebuild the bundle", i,
                    (unsigned long long)memory->offset, (unsigned long long)memory->size_bytes, (unsigned long long)weights_bytes);
    }
    return STATUS_OK;
}

void plan_free(struct plan *plan) {
    free(plan->text);
    free(plan->memories);
    free(plan->inputs);
    free(plan->outputs);
    free(plan->programs);
    free(plan->launches);
    free(plan->arguments);
    memset(plan, 0, sizeof *plan);
}
