/* `profile`: how long each launch takes by the device's own clock, on a queue of its own with profiling switched on. */
#include "commands.h"
#include "statistics.h"

struct profile {
    const struct options *options;
    const struct network *network;
    cl_command_queue queue;
    uint32_t launches;
    cl_event *events;
    double *samples_ms; /* [launch][run] */
    double *sums_ms;    /* [run] */
    double *room;
};

static int event_ms(const struct profile *profile, uint32_t launch, double *elapsed_ms) {
    cl_ulong start = 0, end = 0;
    cl_int code = clGetEventProfilingInfo(profile->events[launch], CL_PROFILING_COMMAND_START, sizeof start, &start, NULL);
    if (code == CL_SUCCESS) code = clGetEventProfilingInfo(profile->events[launch], CL_PROFILING_COMMAND_END, sizeof end, &end, NULL);
    if (code != CL_SUCCESS) return opencl_failed(code, "clGetEventProfilingInfo", "launch %u", launch);
    *elapsed_ms = end > start ? (double)(end - start) / 1e6 : 0.0;
    return STATUS_OK;
}

static int run_with_events(struct profile *profile) {
    memset(profile->events, 0, profile->launches * sizeof *profile->events);
    int status = network_write_inputs(profile->network, profile->queue);
    if (status == STATUS_OK) status = network_launch(profile->network, profile->queue, profile->events);
    if (status == STATUS_OK) status = network_read_outputs(profile->network, profile->queue);
    if (status != STATUS_OK) clFinish(profile->queue);
    return status;
}

static int run_profiled(struct profile *profile, uint64_t run) {
    int status = run_with_events(profile);
    profile->sums_ms[run] = 0;
    for (uint32_t i = 0; i < profile->launches; i++) {
        double elapsed_ms = 0;
        if (status == STATUS_OK) status = event_ms(profile, i, &elapsed_ms);
        profile->samples_ms[i * profile->options->runs + run] = elapsed_ms;
        profile->sums_ms[run] += elapsed_ms;
        if (profile->events[i] != NULL) clReleaseEvent(profile->events[i]);
    }
    return status;
}

static int warm_up(const struct profile *profile) {
    int64_t start = platform_now_ns();
    int status = STATUS_OK;
    const struct options *options = profile->options;
    for (uint64_t run = 0; run < options->warmup_runs || platform_now_ns() - start < (int64_t)options->warmup_ms * 1000000; run++) {
        status = network_run(profile->network, profile->queue);
        if (status != STATUS_OK) return status;
    }
    return status;
}

/* Work per second in billions; null where the clock did not tick. */
static void print_rate(const char *key, uint64_t work, double elapsed_ms) {
    json_double(key, elapsed_ms > 0 ? (double)work / elapsed_ms / 1e6 : __builtin_nan(""));
}

static int print_launch(const struct profile *profile, uint32_t index) {
    const struct plan_launch *launch = &profile->network->bundle->plan.launches[index];
    uint64_t runs = profile->options->runs;
    memcpy(profile->room, profile->samples_ms + index * runs, runs * sizeof *profile->room);
    sort_values(profile->room, runs);
    double median_ms = sorted_percentile(profile->room, runs, 0.5);
    json_begin("launch");
    json_uint("index", index);
    json_string("layer", launch->layer);
    json_string("kernel", launch->kernel);
    json_double("median_ms", median_ms);
    json_double("min_ms", profile->room[0]);
    json_double("p90_ms", sorted_percentile(profile->room, runs, 0.9));
    json_uint("flops", launch->flops);
    json_uint("bytes", launch->bytes);
    print_rate("gflops_per_s", launch->flops, median_ms);
    print_rate("gbytes_per_s", launch->bytes, median_ms);
    return json_end();
}

static int print_results(const struct profile *profile) {
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < profile->launches; i++) status = print_launch(profile, i);
    if (status != STATUS_OK) return status;
    json_begin("profile");
    print_preparation(profile->options, profile->network);
    json_uint("runs", profile->options->runs);
    json_uint("launches", profile->launches);
    print_statistics("launch_sum_ms", profile->sums_ms, profile->options->runs, profile->room);
    return json_end();
}

static int measure(struct profile *profile) {
    int status = session_queue(profile->network->session, true, &profile->queue);
    if (status != STATUS_OK) return status;
    status = warm_up(profile);
    for (uint64_t run = 0; status == STATUS_OK && run < profile->options->runs; run++) status = run_profiled(profile, run);
    clReleaseCommandQueue(profile->queue);
    return status != STATUS_OK ? status : print_results(profile);
}

static int allocate(struct profile *profile) {
    uint64_t runs = profile->options->runs; /* at most 10^6, and at most 2^16 launches: the product fits */
    profile->events = calloc(profile->launches, sizeof *profile->events);
    profile->samples_ms = calloc(profile->launches * runs, sizeof *profile->samples_ms);
    profile->sums_ms = calloc(runs, sizeof *profile->sums_ms);
    profile->room = calloc(runs, sizeof *profile->room);
    bool enough = profile->events != NULL && profile->samples_ms != NULL && profile->sums_ms != NULL && profile->room != NULL;
    return enough ? STATUS_OK : fail(STATUS_MEMORY, "out of memory for %llu samples: use fewer --runs", (unsigned long long)runs);
}

int command_profile(const struct options *options, const struct session *session, const struct bundle *bundle) {
    struct network network;
    int status = network_open(&network, session, bundle, options->cache);
    if (status != STATUS_OK) return status;
    struct profile profile = {.options = options, .network = &network, .launches = bundle->plan.launch_count};
    /* What computes something else is not worth timing. */
    if (options->check) status = check_network(options, &network);
    if (status == STATUS_OK) status = allocate(&profile);
    if (status == STATUS_OK) status = measure(&profile);
    free(profile.events);
    free(profile.samples_ms);
    free(profile.sums_ms);
    free(profile.room);
    network_close(&network);
    return status;
}
