/* `check`: does this bundle, on this device, still compute what it computed where it was built? */
#include "commands.h"

struct difference {
    double max_abs_error;
    double max_abs_expected;
    uint64_t not_finite; /* elements where only one side is a number, or neither is */
};

static double magnitude(double value) { return value < 0 ? -value : value; }

static void add_element(struct difference *difference, double arrived, double expected) {
    if (magnitude(expected) > difference->max_abs_expected) difference->max_abs_expected = magnitude(expected);
    if (arrived == expected) return; /* equal infinities too */
    double error = magnitude(arrived - expected);
    if (error - error != 0) {
        difference->not_finite += 1;
    } else if (error > difference->max_abs_error) {
        difference->max_abs_error = error;
    }
}

/* Keeps the worse of `worst` and this run's difference. */
static void compare(const struct network *network, uint32_t output, struct difference *worst) {
    struct difference difference = {0};
    const struct plan_tensor *tensor = &network->bundle->plan.outputs[output];
    const struct npy *expected = &network->bundle->sample_outputs[output];
    uint64_t elements = tensor->size_bytes / dtype_size(tensor->dtype);
    for (uint64_t i = 0; i < elements; i++) {
        add_element(&difference, dtype_load(tensor->dtype, network->outputs[output], i), dtype_load(expected->dtype, expected->data, i));
    }
    worst->max_abs_expected = difference.max_abs_expected;
    if (difference.max_abs_error > worst->max_abs_error) worst->max_abs_error = difference.max_abs_error;
    if (difference.not_finite > worst->not_finite) worst->not_finite = difference.not_finite;
}

/* Twice: on memory full of NaN, which shows reads of what nothing wrote, and on what the first run left behind. */
static int run_twice(const struct network *network, struct difference *differences) {
    cl_command_queue queue;
    int status = session_queue(network->session, false, &queue);
    if (status != STATUS_OK) return status;
    status = network_poison(network, queue);
    for (int run = 0; status == STATUS_OK && run < 2; run++) {
        status = network_run(network, queue);
        for (uint32_t i = 0; status == STATUS_OK && i < network->bundle->plan.output_count; i++) compare(network, i, &differences[i]);
    }
    clFinish(queue);
    clReleaseCommandQueue(queue);
    return status;
}

static bool passes(const struct plan_tensor *tensor, const struct difference *difference) {
    return difference->not_finite == 0 && difference->max_abs_error <= tensor->tolerance;
}

static int report(const struct options *options, const struct network *network, const struct difference *differences) {
    const struct plan *plan = &network->bundle->plan;
    const struct plan_tensor *worst = NULL;
    const struct difference *by = NULL;
    json_begin("check");
    print_preparation(options, network);
    json_open("outputs", '[');
    for (uint32_t i = 0; i < plan->output_count; i++) {
        const struct plan_tensor *tensor = &plan->outputs[i];
        json_open(NULL, '{');
        json_string("name", tensor->name);
        json_double("max_abs_error", differences[i].max_abs_error);
        json_double("max_abs_expected", differences[i].max_abs_expected);
        json_uint("not_finite", differences[i].not_finite);
        json_double("tolerance", tensor->tolerance);
        json_bool("passed", passes(tensor, &differences[i]));
        json_close('}');
        if (worst == NULL && !passes(tensor, &differences[i])) {
            worst = tensor;
            by = &differences[i];
        }
    }
    json_close(']');
    json_bool("passed", worst == NULL);
    int status = json_end();
    if (status != STATUS_OK || worst == NULL) return status;
    return fail(STATUS_CHECK, "output '%s' is off by %.6g and %llu values are not finite, expected at most %.6g and none: do not use this bundle on '%s'",
                worst->name, by->max_abs_error, (unsigned long long)by->not_finite, worst->tolerance, network->session->device.name);
}

int check_network(const struct options *options, const struct network *network) {
    struct difference differences[MAX_TENSORS] = {0};
    int status = run_twice(network, differences);
    return status != STATUS_OK ? status : report(options, network, differences);
}

int command_check(const struct options *options, const struct session *session, const struct bundle *bundle) {
    struct network network;
    int status = network_open(&network, session, bundle, options->cache);
    if (status != STATUS_OK) return status;
    status = check_network(options, &network);
    network_close(&network);
    return status;
}
