/* `bench`: bundles timed against each other in shuffled rounds, so that a drift of the device hits all alike.
 *
 * The timed region of one sample: write the inputs, enqueue all launches, read the outputs back (blocking). It is taken
 * with the CPU's clock because event times leave out the gaps between launches.
 */
#include "commands.h"
#include "watch.h"

struct series {
    struct network network;
    double first_run_ms;
    double *total_ms, *start_ms, *launch_ms; /* by round */
};

struct bench {
    const struct options *options;
    cl_command_queue queue;
    uint32_t count;
    struct series series[MAX_BUNDLES];
    uint8_t *orders; /* runs * count: which bundle came when */
    double *room;    /* max(runs, launch_runs) values to sort */
    uint64_t random;
    int64_t start_ns;
    struct watch watch;
};

static double ms_since(int64_t start_ns) { return (double)(platform_now_ns() - start_ns) / 1e6; }

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void shuffle(uint64_t *random, uint8_t *order, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) order[i] = (uint8_t)i;
    for (uint32_t i = count; i > 1; i--) {
        uint32_t j = (uint32_t)(next_random(random) % i); /* i <= 16: the bias is below 2^-59 */
        uint8_t moved = order[i - 1];
        order[i - 1] = order[j];
        order[j] = moved;
    }
}

static int time_run(const struct bench *bench, const struct network *network, double *elapsed_ms) {
    int64_t start = platform_now_ns();
    int status = network_run(network, bench->queue);
    *elapsed_ms = ms_since(start);
    return status;
}

static int time_launches(const struct bench *bench, const struct network *network, double *elapsed_ms) {
    int64_t start = platform_now_ns();
    int status = network_launch(network, bench->queue, NULL);
    cl_int code = clFinish(bench->queue);
    *elapsed_ms = ms_since(start);
    if (status != STATUS_OK || code == CL_SUCCESS) return status;
    return opencl_failed(code, "clFinish", "the launches of '%.300s'", network->bundle->path);
}

/* Each bundle's first run pays for what drivers put off until then; it is reported apart. */
static int run_first(struct bench *bench) {
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < bench->count; i++) {
        status = time_run(bench, &bench->series[i].network, &bench->series[i].first_run_ms);
    }
    return status;
}

static int run_untimed(const struct bench *bench) {
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < bench->count; i++) status = network_run(&bench->series[i].network, bench->queue);
    return status;
}

static int warm_up(const struct bench *bench) {
    int64_t start = platform_now_ns();
    int status = STATUS_OK;
    for (uint64_t run = 0; run < bench->options->warmup_runs || ms_since(start) < (double)bench->options->warmup_ms; run++) {
        status = run_untimed(bench);
        if (status != STATUS_OK) return status;
    }
    return status;
}

/* Looks at the device while it is still warm from work, and lets it rest. Whoever came first after a rest would pay for
 * waking it up: then all run once untimed. */
static int between_rounds(struct bench *bench, uint64_t round) {
    watch_sample(&bench->watch, false);
    bool rested = round > 0 && bench->options->rest_ms > 0;
    if (rested) platform_sleep_ms(bench->options->rest_ms);
    rested |= watch_cool_down(&bench->watch);
    return rested ? run_untimed(bench) : STATUS_OK;
}

static int run_rounds(struct bench *bench) {
    bench->start_ns = platform_now_ns();
    watch_begin(&bench->watch, bench->options, bench->start_ns);
    for (uint64_t round = 0; round < bench->options->runs; round++) {
        uint8_t *order = bench->orders + round * bench->count;
        shuffle(&bench->random, order, bench->count);
        int status = between_rounds(bench, round);
        if (status != STATUS_OK) return status;
        for (uint32_t i = 0; i < bench->count; i++) {
            struct series *series = &bench->series[order[i]];
            series->start_ms[round] = ms_since(bench->start_ns);
            status = time_run(bench, &series->network, &series->total_ms[round]);
            if (status != STATUS_OK) return status;
        }
    }
    watch_sample(&bench->watch, true);
    return STATUS_OK;
}

static int run_launch_rounds(struct bench *bench) {
    uint8_t order[MAX_BUNDLES];
    for (uint64_t round = 0; round < bench->options->launch_runs; round++) {
        shuffle(&bench->random, order, bench->count);
        for (uint32_t i = 0; i < bench->count; i++) {
            struct series *series = &bench->series[order[i]];
            int status = time_launches(bench, &series->network, &series->launch_ms[round]);
            if (status != STATUS_OK) return status;
        }
    }
    return STATUS_OK;
}

static int print_series(const struct bench *bench, uint32_t index) {
    const struct options *options = bench->options;
    const struct series *series = &bench->series[index];
    json_begin("bench");
    json_uint("index", index);
    print_preparation(options, &series->network);
    json_double("first_run_ms", series->first_run_ms);
    json_uint("runs", options->runs);
    print_statistics("total_ms", series->total_ms, options->runs, bench->room);
    if (options->launch_runs > 0) print_statistics("launch_ms", series->launch_ms, options->launch_runs, bench->room);
    print_values("total_samples_ms", series->total_ms, options->runs);
    print_values("start_samples_ms", series->start_ms, options->runs);
    print_values("launch_samples_ms", series->launch_ms, options->launch_runs);
    return json_end();
}

static int print_orders(const struct bench *bench) {
    json_begin("rounds");
    json_uint("seed", bench->options->seed);
    json_uint("start_ns", (uint64_t)bench->start_ns);
    json_open("order", '[');
    for (uint64_t round = 0; round < bench->options->runs; round++) {
        json_open(NULL, '[');
        for (uint32_t i = 0; i < bench->count; i++) json_uint(NULL, bench->orders[round * bench->count + i]);
        json_close(']');
    }
    json_close(']');
    return json_end();
}

static int print_results(const struct bench *bench) {
    int status = print_orders(bench);
    if (status == STATUS_OK) status = watch_print(&bench->watch);
    for (uint32_t i = 0; status == STATUS_OK && i < bench->count; i++) status = print_series(bench, i);
    return status;
}

static int allocate(struct bench *bench) {
    uint64_t runs = bench->options->runs, launch_runs = bench->options->launch_runs;
    bench->orders = calloc(runs * bench->count, 1);
    bench->room = calloc(runs > launch_runs ? runs : launch_runs, sizeof *bench->room);
    bool enough = bench->orders != NULL && bench->room != NULL;
    for (uint32_t i = 0; i < bench->count; i++) {
        struct series *series = &bench->series[i];
        series->total_ms = calloc(runs, sizeof *series->total_ms);
        series->start_ms = calloc(runs, sizeof *series->start_ms);
        series->launch_ms = calloc(launch_runs + 1, sizeof *series->launch_ms);
        enough = enough && series->total_ms != NULL && series->start_ms != NULL && series->launch_ms != NULL;
    }
    return enough ? STATUS_OK : fail(STATUS_MEMORY, "out of memory for %llu samples: use fewer --runs", (unsigned long long)runs);
}

static int open_networks(struct bench *bench, const struct session *session, const struct bundle *bundles, uint32_t *opened) {
    for (*opened = 0; *opened < bench->count; *opened += 1) {
        int status = network_open(&bench->series[*opened].network, session, &bundles[*opened], bench->options->cache);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static int measure(struct bench *bench, const struct session *session) {
    int status = session_queue(session, false, &bench->queue);
    if (status != STATUS_OK) return status;
    status = run_first(bench);
    if (status == STATUS_OK) status = warm_up(bench);
    if (status == STATUS_OK) status = run_rounds(bench);
    if (status == STATUS_OK) status = run_launch_rounds(bench);
    clReleaseCommandQueue(bench->queue);
    return status;
}

int command_bench(const struct options *options, const struct session *session, const struct bundle *bundles) {
    static struct bench bench;
    bench = (struct bench){.options = options, .count = options->bundle_count, .random = options->seed};
    uint32_t opened = 0;
    int status = allocate(&bench);
    if (status == STATUS_OK) status = open_networks(&bench, session, bundles, &opened);
    if (status == STATUS_OK) status = measure(&bench, session);
    if (status == STATUS_OK) status = print_results(&bench);
    for (uint32_t i = 0; i < opened; i++) network_close(&bench.series[i].network);
    for (uint32_t i = 0; i < bench.count; i++) {
        free(bench.series[i].total_ms);
        free(bench.series[i].start_ms);
        free(bench.series[i].launch_ms);
    }
    free(bench.orders);
    free(bench.room);
    return status;
}
