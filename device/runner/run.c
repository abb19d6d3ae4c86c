/* `run`: inferences on the caller's arrays. With `--samples N` each file holds N of them along its first axis. */
#include "checked.h"
#include "commands.h"

/* The tensor of `samples` inferences, one after the other along the first axis. */
static int stack(const struct plan_tensor *tensor, uint64_t samples, struct plan_tensor *stacked) {
    *stacked = *tensor;
    if (samples == 1) return STATUS_OK;
    if (tensor->rank == 0) return fail(STATUS_INPUT, "'%s' is a single number, which cannot be stacked: leave --samples out", tensor->name);
    if (checked_multiply(tensor->dims[0], samples, &stacked->dims[0]) && checked_multiply(tensor->size_bytes, samples, &stacked->size_bytes) &&
        stacked->size_bytes <= MAX_OBJECT_BYTES) {
        return STATUS_OK;
    }
    return fail(STATUS_INPUT, "%llu samples of '%s' are more than %llu bytes: give fewer at a time", (unsigned long long)samples,
                tensor->name, (unsigned long long)MAX_OBJECT_BYTES);
}

static int read_input(struct input_files *inputs, uint32_t number, const char *path, const struct plan_tensor *tensor, uint64_t samples) {
    struct plan_tensor expected;
    int status = stack(tensor, samples, &expected);
    if (status != STATUS_OK) return status;
    size_t size;
    enum read_result result = platform_read_file(path, MAX_OBJECT_BYTES, &inputs->bytes[number], &size);
    if (result == READ_NO_MEMORY) return fail(STATUS_MEMORY, "out of memory for '%.300s'", path);
    if (result == READ_TOO_LARGE) return fail(STATUS_INPUT, "'%.300s' is larger than any input: give the right file", path);
    if (result != READ_OK) return fail(STATUS_FILE, "cannot read '%.300s' (%s): give an existing .npy file", path, platform_error());
    status = npy_parse(&inputs->arrays[number], inputs->bytes[number], size, path, STATUS_INPUT);
    return status != STATUS_OK ? status : check_array(&expected, &inputs->arrays[number], path, STATUS_INPUT);
}

int inputs_read(struct input_files *inputs, const struct options *options, const struct plan *plan) {
    memset(inputs, 0, sizeof *inputs);
    if (options->input_count != plan->input_count || options->output_count != plan->output_count) {
        return fail(STATUS_USAGE, "the bundle has %u inputs and %u outputs, got %u --input and %u --output: give one for each",
                    plan->input_count, plan->output_count, options->input_count, options->output_count);
    }
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->input_count; i++) {
        status = read_input(inputs, i, options->inputs[i], &plan->inputs[i], options->samples);
    }
    if (status != STATUS_OK) inputs_free(inputs);
    return status;
}

void inputs_free(struct input_files *inputs) {
    for (uint32_t i = 0; i < MAX_TENSORS; i++) free(inputs->bytes[i]);
    memset(inputs, 0, sizeof *inputs);
}

/* The outputs of all samples, one after the other. */
struct collected {
    struct plan_tensor tensors[MAX_TENSORS];
    uint8_t *data[MAX_TENSORS];
};

static void collected_free(struct collected *collected) {
    for (uint32_t i = 0; i < MAX_TENSORS; i++) free(collected->data[i]);
}

static int collected_make(struct collected *collected, const struct plan *plan, uint64_t samples) {
    memset(collected, 0, sizeof *collected);
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->output_count; i++) {
        status = stack(&plan->outputs[i], samples, &collected->tensors[i]);
        if (status != STATUS_OK) break;
        collected->data[i] = malloc((size_t)collected->tensors[i].size_bytes + 1);
        if (collected->data[i] == NULL) status = fail(STATUS_MEMORY, "out of memory for the outputs of %llu samples", (unsigned long long)samples);
    }
    if (status != STATUS_OK) collected_free(collected);
    return status;
}

static int write_outputs(const struct options *options, const struct plan *plan, const struct collected *collected) {
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->output_count; i++) {
        const struct plan_tensor *tensor = &collected->tensors[i];
        struct npy array = {.dtype = tensor->dtype, .rank = tensor->rank, .data = collected->data[i], .size_bytes = tensor->size_bytes};
        memcpy(array.dims, tensor->dims, sizeof array.dims);
        status = npy_write(options->outputs[i], &array);
    }
    return status;
}

/* Runs sample after sample; the first run's time is kept apart, since it is longer than any other. */
static int run_samples(struct network *network, const struct input_files *inputs, uint64_t samples, const struct collected *collected,
                       double *first_run_ms) {
    const struct plan *plan = &network->bundle->plan;
    cl_command_queue queue;
    int status = session_queue(network->session, false, &queue);
    if (status != STATUS_OK) return status;
    for (uint64_t sample = 0; status == STATUS_OK && sample < samples; sample++) {
        for (uint32_t i = 0; i < plan->input_count; i++) {
            network->inputs[i] = inputs->arrays[i].data + sample * plan->inputs[i].size_bytes;
        }
        int64_t start = platform_now_ns();
        status = network_run(network, queue);
        if (sample == 0) *first_run_ms = (double)(platform_now_ns() - start) / 1e6;
        for (uint32_t i = 0; status == STATUS_OK && i < plan->output_count; i++) {
            uint64_t size = plan->outputs[i].size_bytes;
            memcpy(collected->data[i] + sample * size, network->outputs[i], (size_t)size);
        }
    }
    clReleaseCommandQueue(queue);
    return status;
}

static int print_run(const struct options *options, const struct network *network, double first_run_ms) {
    json_begin("run");
    print_preparation(options, network);
    json_double("first_run_ms", first_run_ms);
    json_uint("samples", options->samples);
    return json_end();
}

int command_run(const struct options *options, const struct session *session, const struct bundle *bundle,
                const struct input_files *inputs) {
    struct collected collected;
    struct network network;
    double first_run_ms = 0;
    int status = collected_make(&collected, &bundle->plan, options->samples);
    if (status != STATUS_OK) return status;
    status = network_open(&network, session, bundle, options->cache);
    if (status == STATUS_OK) {
        status = run_samples(&network, inputs, options->samples, &collected, &first_run_ms);
        if (status == STATUS_OK) status = write_outputs(options, &bundle->plan, &collected);
        if (status == STATUS_OK) status = print_run(options, &network, first_run_ms);
        network_close(&network);
    }
    collected_free(&collected);
    return status;
}
