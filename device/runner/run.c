/* `run`: one inference on the caller's arrays. */
#include "commands.h"

static int read_input(struct input_files *inputs, uint32_t number, const char *path, const struct plan_tensor *tensor) {
    size_t size;
    enum read_result result = platform_read_file(path, MAX_OBJECT_BYTES, &inputs->bytes[number], &size);
    if (result == READ_NO_MEMORY) return fail(STATUS_MEMORY, "out of memory for '%.300s'", path);
    if (result == READ_TOO_LARGE) return fail(STATUS_INPUT, "'%.300s' is larger than any input: give the right file", path);
    if (result != READ_OK) return fail(STATUS_FILE, "cannot read '%.300s' (%s): give an existing .npy file", path, platform_error());
    int status = npy_parse(&inputs->arrays[number], inputs->bytes[number], size, path, STATUS_INPUT);
    return status != STATUS_OK ? status : check_array(tensor, &inputs->arrays[number], path, STATUS_INPUT);
}

int inputs_read(struct input_files *inputs, const struct options *options, const struct plan *plan) {
    memset(inputs, 0, sizeof *inputs);
    if (options->input_count != plan->input_count || options->output_count != plan->output_count) {
        return fail(STATUS_USAGE, "the bundle has %u inputs and %u outputs, got %u --input and %u --output: give one for each",
                    plan->input_count, plan->output_count, options->input_count, options->output_count);
    }
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->input_count; i++) {
        status = read_input(inputs, i, options->inputs[i], &plan->inputs[i]);
    }
    if (status != STATUS_OK) inputs_free(inputs);
    return status;
}

void inputs_free(struct input_files *inputs) {
    for (uint32_t i = 0; i < MAX_TENSORS; i++) free(inputs->bytes[i]);
    memset(inputs, 0, sizeof *inputs);
}

static int write_outputs(const struct options *options, const struct network *network) {
    const struct plan *plan = &network->bundle->plan;
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->output_count; i++) {
        const struct plan_tensor *tensor = &plan->outputs[i];
        struct npy array = {.dtype = tensor->dtype, .rank = tensor->rank, .data = network->outputs[i], .size_bytes = tensor->size_bytes};
        memcpy(array.dims, tensor->dims, sizeof array.dims);
        status = npy_write(options->outputs[i], &array);
    }
    return status;
}

static int run_once(const struct options *options, struct network *network) {
    cl_command_queue queue;
    int status = session_queue(network->session, false, &queue);
    if (status != STATUS_OK) return status;
    int64_t start = platform_now_ns();
    status = network_run(network, queue);
    double run_ms = (double)(platform_now_ns() - start) / 1e6;
    clReleaseCommandQueue(queue);
    if (status == STATUS_OK) status = write_outputs(options, network);
    if (status != STATUS_OK) return status;
    json_begin("run");
    print_preparation(options, network);
    json_double("first_run_ms", run_ms);
    return json_end();
}

int command_run(const struct options *options, const struct session *session, const struct bundle *bundle,
                const struct input_files *inputs) {
    struct network network;
    int status = network_open(&network, session, bundle, options->cache);
    if (status != STATUS_OK) return status;
    for (uint32_t i = 0; i < bundle->plan.input_count; i++) network.inputs[i] = inputs->arrays[i].data;
    status = run_once(options, &network);
    network_close(&network);
    return status;
}
