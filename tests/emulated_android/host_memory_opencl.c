/* Test double: an OpenCL library that keeps everything in host memory and knows two kernels by name, those of
 * tests/hand_made_bundle.py. It compiles nothing and says nothing about the speed or the correctness of any driver.
 * It is there so that the runner's OpenCL calls can be made on a machine type for which there is no driver here.
 *
 * With PIXEL it is Google's wrapper instead: no cl function is exported, loadOpenCLPointer hands them out once
 * enableOpenCL has been called.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef PIXEL
#define CL static
#else
#define CL __attribute__((visibility("default")))
#endif
#define EXPORTED __attribute__((visibility("default")))

typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_ulong;

enum {
    SUCCESS = 0,
    DEVICE_NOT_FOUND = -1,
    MEM_OBJECT_ALLOCATION_FAILURE = -4,
    PROFILING_INFO_NOT_AVAILABLE = -7,
    MISALIGNED_SUB_BUFFER_OFFSET = -13,
    INVALID_VALUE = -30,
    INVALID_COMMAND_QUEUE = -36,
    INVALID_MEM_OBJECT = -38,
    INVALID_BINARY = -42,
    INVALID_KERNEL_NAME = -46,
    INVALID_ARG_INDEX = -49,
    INVALID_ARG_SIZE = -51,
    INVALID_KERNEL_ARGS = -52,
    INVALID_OPERATION = -59,
    INVALID_PROPERTY = -64,
    MAX_ARGUMENTS = 8,
    MAX_RECORDED = 10,
};

struct memory {
    size_t size;
    uint8_t *bytes; /* of a sub-buffer: its buffer's */
    struct memory *buffer;
    int parts; /* sub-buffers that exist */
};

struct program {
    size_t size;
    char text[];
};

struct argument {
    size_t size;
    union {
        struct memory *memory;
        int32_t integer;
        float real;
    };
};

struct kernel_kind {
    const char *name;
    cl_uint arguments;
    size_t sizes[MAX_ARGUMENTS];
    void (*run)(const struct argument *arguments, size_t item);
};

struct kernel {
    const struct kernel_kind *kind;
    struct argument arguments[MAX_ARGUMENTS];
};

struct event {
    cl_ulong start, end;
};

static float *floats(const struct argument *argument) { return (float *)argument->memory->bytes; }

static void scale_add(const struct argument *a, size_t i) {
    floats(&a[2])[i] = floats(&a[0])[i] * a[3].real + floats(&a[1])[i] + (float)a[4].integer;
}

static void relu(const struct argument *a, size_t i) {
    float x = floats(&a[0])[i];
    floats(&a[1])[i] = x > 0 ? x : 0;
}

static const struct kernel_kind kinds[] = {
    {"scale_add", 5, {8, 8, 8, 4, 4}, scale_add},
    {"relu", 2, {8, 8}, relu},
};

static cl_ulong now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (cl_ulong)now.tv_sec * 1000000000 + (cl_ulong)now.tv_nsec;
}

static cl_int give(const void *value, size_t size, size_t room, void *to, size_t *needed) {
    if (needed != NULL) *needed = size;
    if (to != NULL && room < size) return INVALID_VALUE;
    if (to != NULL) memcpy(to, value, size);
    return SUCCESS;
}

static cl_int give_text(const char *text, size_t room, void *to, size_t *needed) {
    return give(text, strlen(text) + 1, room, to, needed);
}

/* What cl_qcom_recordable_queues keeps: launches with the arguments they had when they were recorded. */
struct recording {
    size_t count;
    int ended;
    struct {
        struct kernel kernel;
        size_t items;
    } launches[MAX_RECORDED];
};

static struct recording *open_recording;

/* What the driver says that a recording holds; 0: it does not say. */
static cl_uint most_recorded(void) {
    const char *asked = getenv("DOUBLE_MOST_RECORDED");
    return asked != NULL ? (cl_uint)strtoul(asked, NULL, 10) : 0;
}

static char the_platform, the_device, the_context, the_queues[3]; /* plain, profiling, recordable */

CL cl_int clGetPlatformIDs(cl_uint room, void **platforms, cl_uint *count) {
    if (platforms != NULL && room > 0) platforms[0] = &the_platform;
    if (count != NULL) *count = 1;
    return SUCCESS;
}

CL cl_int clGetPlatformInfo(void *platform, cl_uint what, size_t room, void *to, size_t *needed) {
    if (platform != &the_platform) return INVALID_VALUE;
    return give_text(what == 0x0902 ? "structadmm test double" : "OpenCL 1.2 test double", room, to, needed);
}

CL cl_int clGetDeviceIDs(void *platform, uint64_t types, cl_uint room, void **devices, cl_uint *count) {
    if (platform != &the_platform || types == 0) return DEVICE_NOT_FOUND;
    if (devices != NULL && room > 0) devices[0] = &the_device;
    if (count != NULL) *count = 1;
    return SUCCESS;
}

CL cl_int clGetDeviceInfo(void *device, cl_uint what, size_t room, void *to, size_t *needed) {
    static const size_t items[3] = {64, 64, 64}, group = 64, none = 0;
    static const cl_uint one = 1;
    const char *asked = getenv("DOUBLE_ALIGNMENT_BITS");
    cl_uint align_bits = asked != NULL ? (cl_uint)strtoul(asked, NULL, 10) : 1024;
    cl_uint recorded = most_recorded();
    static const cl_ulong type = 1 << 2, bytes = 1 << 26;
    if (device != &the_device) return INVALID_VALUE;
    switch (what) {
        case 0x1000: return give(&type, sizeof type, room, to, needed);
        case 0x1002: return give(&one, sizeof one, room, to, needed);
        case 0x1004: return give(&group, sizeof group, room, to, needed);
        case 0x1005: return give(items, sizeof items, room, to, needed);
        case 0x100C: return give(&one, sizeof one, room, to, needed); /* Adreno's drivers say 1 MHz, too */
        case 0x1010:
        case 0x101F:
        case 0x1020:
        case 0x1023: return give(&bytes, sizeof bytes, room, to, needed);
        case 0x1011:
        case 0x1012:
        case 0x1041: return give(&none, sizeof none, room, to, needed);
        case 0x1016: return give("\0\0\0", 4, room, to, needed);
        case 0x1019: return give(&align_bits, sizeof align_bits, room, to, needed);
        case 0x102B: return give_text("host-memory test double", room, to, needed);
        case 0x102C: return give_text("structadmm tests", room, to, needed);
        case 0x1030: return give_text("cl_qcom_perf_hint cl_qcom_priority_hint cl_qcom_recordable_queues", room, to, needed);
        case 0x41DE: return recorded > 0 ? give(&recorded, sizeof recorded, room, to, needed) : INVALID_VALUE;
        default: return give_text("1.2 test double", room, to, needed);
    }
}

/* Properties as Qualcomm's extensions define them: pairs, each key once, ended by 0. */
CL void *clCreateContext(const intptr_t *properties, cl_uint count, void *const *devices, void *notify, void *user, cl_int *code) {
    (void)notify, (void)user;
    *code = count == 1 && devices[0] == &the_device ? SUCCESS : INVALID_VALUE;
    for (; *code == SUCCESS && *properties != 0; properties += 2) {
        intptr_t key = properties[0], value = properties[1];
        if (key == 0x1084 && value == (intptr_t)&the_platform) continue;
        if (key == 0x40C2 && value >= 0x40C3 && value <= 0x40C5) continue;
        if (key == 0x40C9 && value >= 0x40CA && value <= 0x40CC) continue;
        *code = INVALID_PROPERTY;
    }
    return *code == SUCCESS ? &the_context : NULL;
}

CL cl_int clReleaseContext(void *context) { return context == &the_context ? SUCCESS : INVALID_VALUE; }

CL void *clCreateCommandQueue(void *context, void *device, uint64_t properties, cl_int *code) {
    *code = context == &the_context && device == &the_device ? SUCCESS : INVALID_VALUE;
    if (properties >> 30 != 0 && properties != 1u << 30) *code = INVALID_VALUE; /* as drivers do */
    return &the_queues[properties == 2 ? 1 : properties != 0 ? 2 : 0];
}

CL cl_int clReleaseCommandQueue(void *queue) { return queue != NULL ? SUCCESS : INVALID_VALUE; }

CL void *clCreateBuffer(void *context, uint64_t flags, size_t size, const void *content, cl_int *code) {
    struct memory *memory = context == &the_context && size > 0 ? calloc(1, sizeof *memory) : NULL;
    if (memory != NULL) memory->bytes = malloc(size);
    *code = memory != NULL && memory->bytes != NULL ? SUCCESS : MEM_OBJECT_ALLOCATION_FAILURE;
    if (*code != SUCCESS) return NULL;
    memory->size = size;
    if (flags & 1 << 5) memcpy(memory->bytes, content, size);
    return memory;
}

/* The rules of the specification: within a buffer that is no sub-buffer itself, where the device's alignment allows. */
CL void *clCreateSubBuffer(void *object, uint64_t flags, cl_uint type, const void *info, cl_int *code) {
    const size_t *region = info; /* origin, size */
    struct memory *buffer = object;
    *code = INVALID_VALUE;
    if (flags != 1 || type != 0x1220 || region[1] == 0) return NULL;
    if (region[0] > buffer->size || region[1] > buffer->size - region[0]) return NULL;
    *code = buffer->buffer != NULL ? INVALID_MEM_OBJECT : region[0] % 128 != 0 ? MISALIGNED_SUB_BUFFER_OFFSET : SUCCESS;
    struct memory *part = *code == SUCCESS ? calloc(1, sizeof *part) : NULL;
    if (part == NULL) return NULL;
    *part = (struct memory){region[1], buffer->bytes + region[0], buffer, 0};
    buffer->parts += 1;
    return part;
}

CL void *clCreateImage(void *context, uint64_t flags, const void *format, const void *desc, void *content, cl_int *code) {
    (void)context, (void)flags, (void)format, (void)desc, (void)content;
    *code = INVALID_OPERATION;
    return NULL;
}

/* A driver keeps a buffer as long as it has sub-buffers; here releasing it too early is an error. */
CL cl_int clReleaseMemObject(void *object) {
    struct memory *memory = object;
    if (memory->parts > 0) return INVALID_MEM_OBJECT;
    if (memory->buffer != NULL) memory->buffer->parts -= 1;
    if (memory->buffer == NULL) free(memory->bytes);
    free(memory);
    return SUCCESS;
}

static struct program *new_program(const void *text, size_t size) {
    struct program *program = malloc(sizeof *program + size + 1);
    if (program == NULL) return NULL;
    program->size = size;
    memcpy(program->text, text, size);
    program->text[size] = 0;
    return program;
}

CL void *clCreateProgramWithSource(void *context, cl_uint count, const char **texts, const size_t *sizes, cl_int *code) {
    *code = context == &the_context && count == 1 ? SUCCESS : INVALID_VALUE;
    return *code == SUCCESS ? new_program(texts[0], sizes[0]) : NULL;
}

/* A program's "binary" is its source. */
CL void *clCreateProgramWithBinary(void *context, cl_uint count, void *const *devices, const size_t *sizes,
                                   const unsigned char **binaries, cl_int *loaded, cl_int *code) {
    *code = context == &the_context && count == 1 && devices[0] == &the_device ? SUCCESS : INVALID_BINARY;
    *loaded = *code;
    return *code == SUCCESS ? new_program(binaries[0], sizes[0]) : NULL;
}

CL cl_int clBuildProgram(void *program, cl_uint count, void *const *devices, const char *options, void *notify, void *user) {
    (void)options, (void)notify, (void)user;
    return program != NULL && count == 1 && devices[0] == &the_device ? SUCCESS : INVALID_VALUE;
}

CL cl_int clGetProgramInfo(void *object, cl_uint what, size_t room, void *to, size_t *needed) {
    struct program *program = object;
    if (what == 0x1165) return give(&program->size, sizeof program->size, room, to, needed);
    if (what != 0x1166 || to == NULL) return INVALID_VALUE;
    memcpy(*(void **)to, program->text, program->size);
    return SUCCESS;
}

CL cl_int clGetProgramBuildInfo(void *program, void *device, cl_uint what, size_t room, void *to, size_t *needed) {
    (void)program, (void)device, (void)what;
    return give_text("", room, to, needed);
}

CL cl_int clReleaseProgram(void *program) {
    free(program);
    return SUCCESS;
}

CL void *clCreateKernel(void *object, const char *name, cl_int *code) {
    const struct program *program = object;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i].name, name) != 0 || strstr(program->text, name) == NULL) continue;
        struct kernel *kernel = calloc(1, sizeof *kernel);
        kernel->kind = &kinds[i];
        *code = SUCCESS;
        return kernel;
    }
    *code = INVALID_KERNEL_NAME;
    return NULL;
}

CL cl_int clGetKernelInfo(void *object, cl_uint what, size_t room, void *to, size_t *needed) {
    const struct kernel *kernel = object;
    if (what != 0x1191) return INVALID_VALUE;
    return give(&kernel->kind->arguments, sizeof kernel->kind->arguments, room, to, needed);
}

CL cl_int clGetKernelWorkGroupInfo(void *kernel, void *device, cl_uint what, size_t room, void *to, size_t *needed) {
    static const size_t group = 64;
    (void)kernel, (void)device;
    return what == 0x11B0 ? give(&group, sizeof group, room, to, needed) : INVALID_VALUE;
}

CL cl_int clSetKernelArg(void *object, cl_uint index, size_t size, const void *value) {
    struct kernel *kernel = object;
    if (index >= kernel->kind->arguments) return INVALID_ARG_INDEX;
    if (size != kernel->kind->sizes[index]) return INVALID_ARG_SIZE;
    kernel->arguments[index].size = size;
    memcpy(&kernel->arguments[index].memory, value, size);
    return SUCCESS;
}

CL cl_int clReleaseKernel(void *kernel) {
    free(kernel);
    return SUCCESS;
}

static cl_int within(const struct memory *memory, size_t offset, size_t size) {
    return offset <= memory->size && size <= memory->size - offset ? SUCCESS : INVALID_VALUE;
}

CL cl_int clEnqueueWriteBuffer(void *queue, void *object, cl_uint blocking, size_t offset, size_t size, const void *from,
                               cl_uint waits, void *const *wait, void **event) {
    (void)queue, (void)blocking, (void)waits, (void)wait, (void)event;
    struct memory *memory = object;
    if (within(memory, offset, size) != SUCCESS) return INVALID_VALUE;
    memcpy(memory->bytes + offset, from, size);
    return SUCCESS;
}

CL cl_int clEnqueueReadBuffer(void *queue, void *object, cl_uint blocking, size_t offset, size_t size, void *to,
                              cl_uint waits, void *const *wait, void **event) {
    (void)queue, (void)blocking, (void)waits, (void)wait, (void)event;
    const struct memory *memory = object;
    if (within(memory, offset, size) != SUCCESS) return INVALID_VALUE;
    memcpy(to, memory->bytes + offset, size);
    return SUCCESS;
}

CL cl_int clEnqueueFillBuffer(void *queue, void *object, const void *pattern, size_t pattern_size, size_t offset, size_t size,
                              cl_uint waits, void *const *wait, void **event) {
    (void)queue, (void)waits, (void)wait, (void)event;
    struct memory *memory = object;
    if (pattern_size != 1 || within(memory, offset, size) != SUCCESS) return INVALID_VALUE;
    memset(memory->bytes + offset, *(const uint8_t *)pattern, size);
    return SUCCESS;
}

CL cl_int clEnqueueFillImage(void *queue, void *image, const void *color, const size_t *origin, const size_t *region,
                             cl_uint waits, void *const *wait, void **event) {
    (void)queue, (void)image, (void)color, (void)origin, (void)region, (void)waits, (void)wait, (void)event;
    return INVALID_OPERATION;
}

CL cl_int clEnqueueNDRangeKernel(void *queue, void *object, cl_uint dims, const size_t *offset, const size_t *global,
                                 const size_t *local, cl_uint waits, void *const *wait, void **event) {
    (void)local, (void)waits, (void)wait;
    const struct kernel *kernel = object;
    if (dims != 1 || offset != NULL) return INVALID_VALUE;
    for (cl_uint i = 0; i < kernel->kind->arguments; i++) {
        if (kernel->arguments[i].size == 0) return INVALID_KERNEL_ARGS;
    }
    if (queue == &the_queues[2]) {
        size_t most = most_recorded() > 0 && most_recorded() < MAX_RECORDED ? most_recorded() : MAX_RECORDED;
        if (open_recording == NULL || event != NULL || open_recording->count == most) return INVALID_OPERATION;
        open_recording->launches[open_recording->count].kernel = *kernel;
        open_recording->launches[open_recording->count++].items = global[0];
        return SUCCESS;
    }
    cl_ulong start = now_ns();
    for (size_t item = 0; item < global[0]; item++) kernel->kind->run(kernel->arguments, item);
    if (event == NULL) return SUCCESS;
    struct event *times = malloc(sizeof *times);
    *times = (struct event){queue == &the_queues[1] ? start : 0, now_ns()};
    *event = times;
    return SUCCESS;
}

CL void *clNewRecordingQCOM(void *queue, cl_int *code) {
    const char *broken = getenv("DOUBLE_REFUSES_RECORDINGS");
    *code = queue == &the_queues[2] && open_recording == NULL && broken == NULL ? SUCCESS : INVALID_COMMAND_QUEUE;
    if (*code == SUCCESS) open_recording = calloc(1, sizeof *open_recording);
    return *code == SUCCESS ? open_recording : NULL;
}

CL cl_int clEndRecordingQCOM(void *object) {
    struct recording *recording = object;
    if (recording != open_recording) return INVALID_OPERATION;
    recording->ended = 1;
    open_recording = NULL;
    return SUCCESS;
}

CL cl_int clReleaseRecordingQCOM(void *object) {
    free(object);
    return SUCCESS;
}

CL cl_int clEnqueueRecordingQCOM(void *queue, void *object, size_t arguments, const void *argument, size_t offsets, const void *offset,
                                 size_t globals, const void *global, size_t locals, const void *local, cl_uint waits,
                                 void *const *wait, void **event) {
    (void)argument, (void)offset, (void)global, (void)local, (void)waits, (void)wait, (void)event;
    const struct recording *recording = object;
    if (queue == &the_queues[2] || !recording->ended || arguments + offsets + globals + locals != 0) return INVALID_OPERATION;
    for (size_t i = 0; i < recording->count; i++) {
        const struct kernel *kernel = &recording->launches[i].kernel;
        for (size_t item = 0; item < recording->launches[i].items; item++) kernel->kind->run(kernel->arguments, item);
    }
    return SUCCESS;
}

CL cl_int clFinish(void *queue) { return queue != NULL ? SUCCESS : INVALID_VALUE; }

CL cl_int clGetEventProfilingInfo(void *event, cl_uint what, size_t room, void *to, size_t *needed) {
    const struct event *times = event;
    if (times->start == 0) return PROFILING_INFO_NOT_AVAILABLE;
    return give(what == 0x1282 ? &times->start : &times->end, sizeof times->start, room, to, needed);
}

CL cl_int clReleaseEvent(void *event) {
    free(event);
    return SUCCESS;
}

#ifdef PIXEL
static int enabled;

EXPORTED void enableOpenCL(void) { enabled = 1; }

EXPORTED void *loadOpenCLPointer(const char *name) {
#define KNOWN(function) {#function, (void *)function}
    static const struct {
        const char *name;
        void *function;
    } functions[] = {
        KNOWN(clGetPlatformIDs), KNOWN(clGetPlatformInfo), KNOWN(clGetDeviceIDs), KNOWN(clGetDeviceInfo), KNOWN(clCreateContext),
        KNOWN(clReleaseContext), KNOWN(clCreateCommandQueue), KNOWN(clReleaseCommandQueue), KNOWN(clCreateBuffer), KNOWN(clCreateSubBuffer),
        KNOWN(clCreateImage), KNOWN(clReleaseMemObject), KNOWN(clCreateProgramWithSource), KNOWN(clCreateProgramWithBinary),
        KNOWN(clBuildProgram), KNOWN(clGetProgramInfo), KNOWN(clGetProgramBuildInfo), KNOWN(clReleaseProgram), KNOWN(clCreateKernel),
        KNOWN(clGetKernelInfo), KNOWN(clGetKernelWorkGroupInfo), KNOWN(clSetKernelArg), KNOWN(clReleaseKernel),
        KNOWN(clEnqueueWriteBuffer), KNOWN(clEnqueueReadBuffer), KNOWN(clEnqueueFillBuffer), KNOWN(clEnqueueFillImage),
        KNOWN(clNewRecordingQCOM), KNOWN(clEndRecordingQCOM), KNOWN(clReleaseRecordingQCOM), KNOWN(clEnqueueRecordingQCOM),
        KNOWN(clEnqueueNDRangeKernel), KNOWN(clFinish), KNOWN(clGetEventProfilingInfo), KNOWN(clReleaseEvent),
    };
    for (size_t i = 0; enabled && i < sizeof functions / sizeof *functions; i++) {
        if (strcmp(functions[i].name, name) == 0) return functions[i].function;
    }
    return NULL;
}
#endif
