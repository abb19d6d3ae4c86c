#include "network.h"

static const char *kind_name(enum memory_kind kind) {
    static const char *const names[] = {"buffer", "part", "constant", "image2d", "image2d_array", "constant_image2d", "image1d_buffer"};
    return names[kind];
}

static bool is_image(const struct plan_memory *memory) {
    return memory->kind == MEMORY_IMAGE2D || memory->kind == MEMORY_IMAGE2D_ARRAY || memory->kind == MEMORY_CONSTANT_IMAGE2D ||
           memory->kind == MEMORY_IMAGE1D_BUFFER;
}

static int check_image(const struct device *device, const struct plan_memory *memory, uint32_t id) {
    if (device->image_support == 0) {
        return fail(STATUS_DEVICE_LIMIT, "memory object %u is an image and '%s' has none: build the bundle with buffers", id, device->name);
    }
    if (memory->kind == MEMORY_IMAGE1D_BUFFER) {
        if (memory->width <= device->image_max_buffer) return STATUS_OK;
        return fail(STATUS_DEVICE_LIMIT, "image %u of a buffer has %llu texels, '%s' takes %zu: build the bundle for this device", id,
                    (unsigned long long)memory->width, device->name, device->image_max_buffer);
    }
    bool fits = memory->width <= device->image_max_width && memory->height <= device->image_max_height;
    if (memory->kind == MEMORY_IMAGE2D_ARRAY) fits = fits && memory->depth <= device->image_max_layers;
    if (fits) return STATUS_OK;
    return fail(STATUS_DEVICE_LIMIT, "image %u is %llu x %llu x %llu texels, '%s' takes %zu x %zu x %zu: build the bundle for this device",
                id, (unsigned long long)memory->width, (unsigned long long)memory->height, (unsigned long long)memory->depth,
                device->name, device->image_max_width, device->image_max_height, device->image_max_layers);
}

static int check_part(const struct device *device, const struct plan_memory *memory, uint32_t id) {
    uint64_t alignment = device->base_align_bits / 8; /* 0 where a driver does not tell: it may still refuse */
    if (alignment == 0 || memory->offset % alignment == 0) return STATUS_OK;
    return fail(STATUS_DEVICE_LIMIT, "memory object %u begins at byte %llu of its buffer, '%s' wants multiples of %llu: use another device",
                id, (unsigned long long)memory->offset, device->name, (unsigned long long)alignment);
}

static int check_memory(const struct device *device, const struct plan *plan) {
    for (uint32_t i = 0; i < plan->memory_count; i++) {
        const struct plan_memory *memory = &plan->memories[i];
        if (memory->size_bytes > device->max_object_bytes) {
            return fail(STATUS_MEMORY, "memory object %u has %llu bytes, '%s' allows %llu: use a smaller network", i,
                        (unsigned long long)memory->size_bytes, device->name, (unsigned long long)device->max_object_bytes);
        }
        int status = STATUS_OK;
        if (is_image(memory)) status = check_image(device, memory, i);
        if (memory->kind == MEMORY_PART) status = check_part(device, memory, i);
        if (status != STATUS_OK) return status;
    }
    if (plan->memory_bytes <= device->global_bytes) return STATUS_OK;
    return fail(STATUS_MEMORY, "the bundle needs %llu bytes, '%s' has %llu: use a smaller network",
                (unsigned long long)plan->memory_bytes, device->name, (unsigned long long)device->global_bytes);
}

static int check_work_groups(const struct device *device, const struct plan *plan) {
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const struct plan_launch *launch = &plan->launches[i];
        uint64_t items = 1;
        bool fits = true;
        for (uint32_t d = 0; launch->local_given && fits && d < launch->dims; d++) {
            items *= launch->local[d];
            fits = launch->local[d] <= device->max_work_item[d] && items <= device->max_work_group;
        }
        if (fits) continue;
        return fail(STATUS_DEVICE_LIMIT,
                    "launch %u (layer %s, kernel %s) has work-groups of %zu x %zu x %zu, '%s' takes %zu work-items: build for this device",
                    i, launch->layer, launch->kernel, launch->local[0], launch->dims > 1 ? launch->local[1] : 1,
                    launch->dims > 2 ? launch->local[2] : 1, device->name, device->max_work_group);
    }
    return STATUS_OK;
}

static cl_image_format image_format(const struct plan_memory *memory) {
    return (cl_image_format){CL_RGBA, memory->texel_bytes == 16 ? CL_FLOAT : CL_HALF_FLOAT};
}

static cl_mem create_image(const struct network *network, const struct plan_memory *memory, void *texels, cl_int *code) {
    bool array = memory->kind == MEMORY_IMAGE2D_ARRAY;
    cl_image_format format = image_format(memory);
    cl_image_desc desc = {
        .image_type = array ? CL_MEM_OBJECT_IMAGE2D_ARRAY : CL_MEM_OBJECT_IMAGE2D,
        .image_width = memory->width,
        .image_height = memory->height,
        .image_depth = 1,
        .image_array_size = array ? memory->depth : 1,
    };
    cl_bitfield flags = texels != NULL ? CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR : CL_MEM_READ_WRITE;
    return clCreateImage(network->session->context, flags, &format, &desc, texels, code);
}

static cl_mem create_part(const struct network *network, const struct plan_memory *memory, cl_int *code) {
    cl_buffer_region region = {memory->offset, memory->size_bytes};
    return clCreateSubBuffer(network->memories[memory->buffer], CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, code);
}

static cl_mem create_view(const struct network *network, const struct plan_memory *memory, cl_int *code) {
    cl_image_format format = image_format(memory);
    cl_image_desc desc = {
        .image_type = CL_MEM_OBJECT_IMAGE1D_BUFFER,
        .image_width = memory->width,
        .buffer = network->memories[memory->buffer],
    };
    return clCreateImage(network->session->context, CL_MEM_READ_ONLY, &format, &desc, NULL, code);
}

/* Whether memory object `id` is an image of a part, and no earlier one is an image of the same. */
static bool is_first_image_of_part(const struct plan *plan, uint32_t id) {
    const struct plan_memory *memory = &plan->memories[id];
    if (memory->kind != MEMORY_IMAGE1D_BUFFER || plan->memories[memory->buffer].kind != MEMORY_PART) return false;
    for (uint32_t i = memory->buffer + 1; i < id; i++) {
        if (plan->memories[i].kind == MEMORY_IMAGE1D_BUFFER && plan->memories[i].buffer == memory->buffer) return false;
    }
    return true;
}

/* Gives a part memory of its own. Nothing relies on bytes that tensors share, so results are the same. */
static int detach_part(struct network *network, uint32_t id) {
    uint64_t size = network->bundle->plan.memories[id].size_bytes;
    cl_int code;
    cl_mem buffer = clCreateBuffer(network->session->context, CL_MEM_READ_WRITE, size, NULL, &code);
    if (code != CL_SUCCESS) {
        return opencl_failed(code, "clCreateBuffer", "memory object %u (part of %llu bytes)", id, (unsigned long long)size);
    }
    clReleaseMemObject(network->memories[id]);
    network->memories[id] = buffer;
    network->detached_bytes += size;
    return STATUS_OK;
}

static cl_mem create_memory(const struct network *network, const struct plan_memory *memory, cl_int *code) {
    bool constant = memory->kind == MEMORY_CONSTANT || memory->kind == MEMORY_CONSTANT_IMAGE2D;
    void *content = constant ? network->bundle->weights->data + memory->offset : NULL;
    if (memory->kind == MEMORY_IMAGE1D_BUFFER) return create_view(network, memory, code);
    if (is_image(memory)) return create_image(network, memory, content, code);
    if (memory->kind == MEMORY_PART) return create_part(network, memory, code);
    cl_bitfield flags = constant ? CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR : CL_MEM_READ_WRITE;
    return clCreateBuffer(network->session->context, flags, memory->size_bytes, content, code);
}

static int create_memories(struct network *network) {
    const struct plan *plan = &network->bundle->plan;
    for (uint32_t i = 0; i < plan->memory_count; i++) {
        const struct plan_memory *memory = &plan->memories[i];
        cl_int code;
        network->memories[i] = create_memory(network, memory, &code);
        if (code != CL_SUCCESS && is_first_image_of_part(plan, i)) {
            /* PoCL 3.1: CL_INVALID_MEM_OBJECT, "does not support Image 1D Buffer over SubBuffers", which OpenCL 1.2 has. */
            int status = detach_part(network, memory->buffer);
            if (status != STATUS_OK) return status;
            network->memories[i] = create_memory(network, memory, &code);
        }
        if (code == CL_SUCCESS) continue;
        const char *call = is_image(memory) ? "clCreateImage" : memory->kind == MEMORY_PART ? "clCreateSubBuffer" : "clCreateBuffer";
        return opencl_failed(code, call, "memory object %u (%s of %llu bytes)", i, kind_name(memory->kind),
                             (unsigned long long)memory->size_bytes);
    }
    return STATUS_OK;
}

static int build_programs(struct network *network, const char *cache) {
    const struct plan *plan = &network->bundle->plan;
    for (uint32_t i = 0; i < plan->program_count; i++) {
        const struct plan_program *program = &plan->programs[i];
        struct program_source source = {
            .number = i,
            .text = (const char *)network->bundle->kernels->data + program->offset,
            .size = program->size,
            .options = program->options,
        };
        int status = program_build(network->session, cache, &source, &network->cache, &network->programs[i]);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static int set_argument(const struct network *network, uint32_t number, uint32_t index) {
    const struct plan_launch *launch = &network->bundle->plan.launches[number];
    const struct plan_argument *argument = &network->bundle->plan.arguments[launch->first_argument + index];
    cl_kernel kernel = network->kernels[number];
    cl_int code;
    if (argument->kind == ARGUMENT_MEMORY) {
        code = clSetKernelArg(kernel, index, sizeof(cl_mem), &network->memories[argument->memory]);
        if (code == CL_SUCCESS) return STATUS_OK;
        return opencl_failed(code, "clSetKernelArg", "argument %u (m%u) of launch %u (layer %s, kernel %s)", index,
                             argument->memory, number, launch->layer, launch->kernel);
    }
    bool integer = argument->kind == ARGUMENT_INT;
    code = integer ? clSetKernelArg(kernel, index, 4, &argument->integer) : clSetKernelArg(kernel, index, 4, &argument->real);
    if (code == CL_SUCCESS) return STATUS_OK;
    return opencl_failed(code, "clSetKernelArg", "argument %u (%s) of launch %u (layer %s, kernel %s)", index,
                         integer ? "an int" : "a float", number, launch->layer, launch->kernel);
}

/* What a built kernel says of itself against what the plan wants of it. */
static int check_kernel(const struct network *network, uint32_t number) {
    const struct plan_launch *launch = &network->bundle->plan.launches[number];
    const struct device *device = &network->session->device;
    cl_kernel kernel = network->kernels[number];
    cl_uint arguments = 0;
    cl_int code = clGetKernelInfo(kernel, CL_KERNEL_NUM_ARGS, sizeof arguments, &arguments, NULL);
    if (code != CL_SUCCESS) return opencl_failed(code, "clGetKernelInfo", "kernel %s", launch->kernel);
    if (arguments != launch->argument_count) {
        return fail(STATUS_MALFORMED, "launch %u (layer %s) gives kernel %s %u arguments, it takes %u: rebuild the bundle", number,
                    launch->layer, launch->kernel, launch->argument_count, arguments);
    }
    size_t limit = 0, items = 1;
    code = clGetKernelWorkGroupInfo(kernel, device->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof limit, &limit, NULL);
    if (code != CL_SUCCESS) return opencl_failed(code, "clGetKernelWorkGroupInfo", "kernel %s", launch->kernel);
    for (uint32_t d = 0; launch->local_given && d < launch->dims; d++) items *= launch->local[d];
    if (items <= limit) return STATUS_OK;
    return fail(STATUS_DEVICE_LIMIT, "launch %u (layer %s, kernel %s) has work-groups of %zu, this kernel allows %zu on '%s': build for this device",
                number, launch->layer, launch->kernel, items, limit, device->name);
}

static int create_kernels(struct network *network) {
    const struct plan *plan = &network->bundle->plan;
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const struct plan_launch *launch = &plan->launches[i];
        cl_int code;
        network->kernels[i] = clCreateKernel(network->programs[launch->program], launch->kernel, &code);
        if (code != CL_SUCCESS) {
            return opencl_failed(code, "clCreateKernel", "kernel %s of program %u (layer %s)", launch->kernel, launch->program, launch->layer);
        }
        int status = check_kernel(network, i);
        for (uint32_t a = 0; status == STATUS_OK && a < launch->argument_count; a++) status = set_argument(network, i, a);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static int allocate(struct network *network) {
    const struct plan *plan = &network->bundle->plan;
    network->memories = calloc(plan->memory_count, sizeof *network->memories);
    network->programs = calloc(plan->program_count, sizeof *network->programs);
    network->kernels = calloc(plan->launch_count, sizeof *network->kernels);
    bool enough = network->memories != NULL && network->programs != NULL && network->kernels != NULL;
    for (uint32_t i = 0; i < plan->input_count; i++) network->inputs[i] = network->bundle->sample_inputs[i].data;
    for (uint32_t i = 0; enough && i < plan->output_count; i++) {
        network->outputs[i] = calloc(plan->outputs[i].size_bytes, 1);
        enough = network->outputs[i] != NULL;
    }
    return enough ? STATUS_OK : fail(STATUS_MEMORY, "out of memory for the objects of '%.300s'", network->bundle->path);
}

/* Told before the driver would tell it as a build log. The name of every dtype stored in half starts with float16. */
static int check_dtype(const struct device *device, const struct plan *plan) {
    if (strncmp(plan->dtype, "float16", 7) != 0 || device_has(device, "cl_khr_fp16")) return STATUS_OK;
    return fail(STATUS_DEVICE_LIMIT, "the bundle's dtype is %.40s, '%s' lacks cl_khr_fp16: build the bundle with dtype float32",
                plan->dtype, device->name);
}

int network_open(struct network *network, const struct session *session, const struct bundle *bundle, const char *cache) {
    memset(network, 0, sizeof *network);
    network->bundle = bundle;
    network->session = session;
    int status = check_dtype(&session->device, &bundle->plan);
    if (status == STATUS_OK) status = check_memory(&session->device, &bundle->plan);
    if (status == STATUS_OK) status = check_work_groups(&session->device, &bundle->plan);
    if (status == STATUS_OK) status = allocate(network);
    if (status == STATUS_OK) status = create_memories(network);
    int64_t start = platform_now_ns();
    if (status == STATUS_OK) status = build_programs(network, cache);
    if (status == STATUS_OK) status = create_kernels(network);
    if (status == STATUS_OK) recording_make(&network->recording, session, &bundle->plan, network->kernels);
    network->build_ms = (double)(platform_now_ns() - start) / 1e6;
    if (status != STATUS_OK) network_close(network);
    return status;
}

void network_close(struct network *network) {
    const struct plan *plan = &network->bundle->plan;
    recording_free(&network->recording);
    for (uint32_t i = 0; network->kernels != NULL && i < plan->launch_count; i++) {
        if (network->kernels[i] != NULL) clReleaseKernel(network->kernels[i]);
    }
    for (uint32_t i = 0; network->programs != NULL && i < plan->program_count; i++) {
        if (network->programs[i] != NULL) clReleaseProgram(network->programs[i]);
    }
    for (uint32_t i = plan->memory_count; network->memories != NULL && i-- > 0;) { /* images and parts before their buffers */
        if (network->memories[i] != NULL) clReleaseMemObject(network->memories[i]);
    }
    for (uint32_t i = 0; i < plan->output_count; i++) {
        free(network->outputs[i]);
        network->outputs[i] = NULL;
    }
    free(network->kernels);
    free(network->programs);
    free(network->memories);
    network->kernels = NULL;
    network->programs = NULL;
    network->memories = NULL;
}

int network_write_inputs(const struct network *network, cl_command_queue queue) {
    const struct plan *plan = &network->bundle->plan;
    for (uint32_t i = 0; i < plan->input_count; i++) {
        const struct plan_tensor *tensor = &plan->inputs[i];
        /* Not blocking: the caller's array outlives the read that ends every inference. */
        cl_int code = clEnqueueWriteBuffer(queue, network->memories[tensor->memory], 0, 0, tensor->size_bytes,
                                           network->inputs[i], 0, NULL, NULL);
        if (code != CL_SUCCESS) return opencl_failed(code, "clEnqueueWriteBuffer", "input %u (%s)", i, tensor->name);
    }
    return STATUS_OK;
}

int network_launch(const struct network *network, cl_command_queue queue, cl_event *events) {
    const struct plan *plan = &network->bundle->plan;
    /* A recording has one event for all its launches. */
    if (events == NULL && network->recording.part_count > 0) return recording_enqueue(&network->recording, queue);
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const struct plan_launch *launch = &plan->launches[i];
        cl_int code = launch_enqueue(plan, network->kernels, i, queue, events != NULL ? &events[i] : NULL);
        if (code != CL_SUCCESS) {
            return opencl_failed(code, "clEnqueueNDRangeKernel", "launch %u (layer %s, kernel %s)", i, launch->layer, launch->kernel);
        }
    }
    return STATUS_OK;
}

int network_read_outputs(const struct network *network, cl_command_queue queue) {
    const struct plan *plan = &network->bundle->plan;
    for (uint32_t i = 0; i < plan->output_count; i++) {
        const struct plan_tensor *tensor = &plan->outputs[i];
        cl_bool blocking = i + 1 == plan->output_count; /* in order: when the last is there, all are */
        cl_int code = clEnqueueReadBuffer(queue, network->memories[tensor->memory], blocking, 0, tensor->size_bytes,
                                          network->outputs[i], 0, NULL, NULL);
        if (code != CL_SUCCESS) return opencl_failed(code, "clEnqueueReadBuffer", "output %u (%s)", i, tensor->name);
    }
    return STATUS_OK;
}

int network_run(const struct network *network, cl_command_queue queue) {
    int status = network_write_inputs(network, queue);
    if (status == STATUS_OK) status = network_launch(network, queue, NULL);
    if (status == STATUS_OK) return network_read_outputs(network, queue);
    clFinish(queue); /* what was enqueued before the failure still uses the caller's arrays */
    return status;
}

static int poison_image(const struct network *network, cl_command_queue queue, uint32_t id) {
    const struct plan_memory *memory = &network->bundle->plan.memories[id];
    float texel[4];
    memset(texel, 0xff, sizeof texel);
    size_t origin[3] = {0, 0, 0}, region[3] = {memory->width, memory->height, memory->depth};
    cl_int code = clEnqueueFillImage(queue, network->memories[id], texel, origin, region, 0, NULL, NULL);
    return code == CL_SUCCESS ? STATUS_OK : opencl_failed(code, "clEnqueueFillImage", "memory object %u", id);
}

static int poison_buffer(const struct network *network, cl_command_queue queue, uint32_t id) {
    uint8_t pattern = 0xff; /* all ones is a NaN in float32 and float16 */
    uint64_t size = network->bundle->plan.memories[id].size_bytes;
    cl_int code = clEnqueueFillBuffer(queue, network->memories[id], &pattern, 1, 0, size, 0, NULL, NULL);
    return code == CL_SUCCESS ? STATUS_OK : opencl_failed(code, "clEnqueueFillBuffer", "memory object %u", id);
}

int network_poison(const struct network *network, cl_command_queue queue) {
    const struct plan *plan = &network->bundle->plan;
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->memory_count; i++) {
        enum memory_kind kind = plan->memories[i].kind;
        /* Parts are bytes of a buffer, unless they had to be detached from it. */
        bool detached = kind == MEMORY_PART && network->detached_bytes > 0;
        if (kind == MEMORY_BUFFER || detached) status = poison_buffer(network, queue, i);
        if (kind == MEMORY_IMAGE2D || kind == MEMORY_IMAGE2D_ARRAY) status = poison_image(network, queue, i);
    }
    return status;
}
