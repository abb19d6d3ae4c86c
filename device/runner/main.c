/* The structadmm runner: see help_text in options.c, README.md, and docs/bundle-format.md. */
#include "commands.h"
#include "json.h"

void print_preparation(const struct options *options, const struct network *network) {
    json_string("bundle", network->bundle->path);
    json_string("target", network->bundle->plan.target);
    json_string("dtype", network->bundle->plan.dtype);
    json_double("load_ms", network->bundle->load_ms);
    json_double("build_ms", network->build_ms);
    json_uint("memory_bytes", network->bundle->plan.memory_bytes + network->detached_bytes);
    json_uint("recordings", network->recording.part_count);
    json_open("binary_cache", '{');
    json_bool("used", options->cache != NULL);
    json_uint("hits", network->cache.hits);
    json_uint("misses", network->cache.misses);
    json_uint("damaged", network->cache.damaged);
    json_uint("refused", network->cache.refused);
    json_close('}');
}

static int print_library(void) {
    json_begin("library");
    json_uint("plan_version", PLAN_VERSION);
    json_string("opencl_library", opencl_library());
    return json_end();
}

static int print_devices(const struct device_list *list) {
    int status = print_library();
    for (uint32_t i = 0; status == STATUS_OK && i < list->count; i++) {
        json_begin("device");
        device_print(&list->devices[i]);
        status = json_end();
    }
    return status;
}

static int print_session(const struct session *session) {
    json_begin("session");
    json_string("opencl_library", opencl_library());
    json_bool("perf_hint_set", session->perf_hint);
    json_bool("priority_hint_set", session->priority_hint);
    json_bool("recording_set", session->recording);
    device_print(&session->device);
    return json_end();
}

/* All that a command works on, whole and verified. */
struct material {
    struct bundle *bundles;
    uint32_t bundle_count;
    struct input_files inputs;
};

static int run_command(const struct options *options, const struct session *session, const struct material *material) {
    int status = print_session(session);
    if (status != STATUS_OK) return status;
    switch (options->command) {
        case COMMAND_RUN: return command_run(options, session, material->bundles, &material->inputs);
        case COMMAND_CHECK: return command_check(options, session, material->bundles);
        case COMMAND_BENCH: return command_bench(options, session, material->bundles);
        default: return command_profile(options, session, material->bundles);
    }
}

static int use_devices(const struct options *options, const struct device_list *list, const struct material *material) {
    if (options->command == COMMAND_INFO) return print_devices(list);
    const struct device *device;
    struct session session;
    int status = devices_choose(list, options->device, &device);
    if (status == STATUS_OK) status = session_open(&session, device, &options->extras);
    if (status != STATUS_OK) return status;
    status = run_command(options, &session, material);
    clReleaseContext(session.context);
    return status;
}

static int use_opencl(const struct options *options, const struct material *material) {
    struct device_list list;
    int status = opencl_load();
    if (status == STATUS_OK) status = devices_find(&list);
    if (status != STATUS_OK) return status;
    status = use_devices(options, &list, material);
    devices_free(&list);
    return status;
}

static int load(const struct options *options, struct material *material) {
    memset(material, 0, sizeof *material);
    material->bundles = calloc(options->bundle_count + 1, sizeof *material->bundles);
    if (material->bundles == NULL) return fail(STATUS_MEMORY, "out of memory for %u bundles", options->bundle_count);
    for (uint32_t i = 0; i < options->bundle_count; i++) {
        int status = bundle_load(&material->bundles[i], options->bundles[i]);
        if (status != STATUS_OK) return status;
        material->bundle_count += 1;
    }
    if (options->command != COMMAND_RUN) return STATUS_OK;
    return inputs_read(&material->inputs, options, &material->bundles[0].plan);
}

/* Bundles and inputs are verified before OpenCL is so much as loaded. */
static int run(const struct options *options) {
    struct material material;
    int status = load(options, &material);
    if (status == STATUS_OK) status = use_opencl(options, &material);
    for (uint32_t i = 0; i < material.bundle_count; i++) bundle_free(&material.bundles[i]);
    free(material.bundles);
    inputs_free(&material.inputs);
    return status;
}

int main(int count, char **words) {
    struct options options;
    int status = options_parse(&options, count, words);
    if (status == STATUS_OK && options.command == COMMAND_HELP) {
        return platform_write(1, help_text, strlen(help_text)) ? STATUS_OK : STATUS_FILE;
    }
    if (status == STATUS_OK) status = run(&options);
    if (status == STATUS_OK) return STATUS_OK;
    const char *message = failure_message();
    char line[1100];
    int length = snprintf(line, sizeof line, "runner: %s\n", message);
    if (length > 0) platform_write(2, line, (size_t)length);
    return status;
}
