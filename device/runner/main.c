/* The structadmm runner: see help_text in options.c, README.md, and docs/bundle-format.md. */
#include "commands.h"
#include "json.h"

void print_preparation(const struct options *options, const struct network *network) {
    json_string("bundle", network->bundle->path);
    json_string("target", network->bundle->plan.target);
    json_string("dtype", network->bundle->plan.dtype);
    json_double("load_ms", network->bundle->load_ms);
    json_double("build_ms", network->build_ms);
    json_uint("memory_bytes", network->bundle->plan.memory_bytes);
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
    device_print(&session->device);
    return json_end();
}

static int run_command(const struct options *options, const struct session *session, const struct bundle *bundles) {
    int status = print_session(session);
    if (status != STATUS_OK) return status;
    switch (options->command) {
        case COMMAND_RUN: return command_run(options, session, bundles);
        case COMMAND_CHECK: return command_check(options, session, bundles);
        case COMMAND_BENCH: return command_bench(options, session, bundles);
        default: return command_profile(options, session, bundles);
    }
}

static int use_devices(const struct options *options, const struct device_list *list, const struct bundle *bundles) {
    if (options->command == COMMAND_INFO) return print_devices(list);
    const struct device *device;
    struct session session;
    int status = devices_choose(list, options->device, &device);
    if (status == STATUS_OK) status = session_open(&session, device);
    if (status != STATUS_OK) return status;
    status = run_command(options, &session, bundles);
    clReleaseContext(session.context);
    return status;
}

static int use_opencl(const struct options *options, const struct bundle *bundles) {
    struct device_list list;
    int status = opencl_load();
    if (status == STATUS_OK) status = devices_find(&list);
    if (status != STATUS_OK) return status;
    status = use_devices(options, &list, bundles);
    devices_free(&list);
    return status;
}

/* Every bundle is verified before OpenCL is so much as loaded. */
static int run(const struct options *options) {
    struct bundle *bundles = calloc(options->bundle_count + 1, sizeof *bundles);
    if (bundles == NULL) return fail(STATUS_MEMORY, "out of memory for %u bundles", options->bundle_count);
    uint32_t loaded = 0;
    int status = STATUS_OK;
    while (status == STATUS_OK && loaded < options->bundle_count) {
        status = bundle_load(&bundles[loaded], options->bundles[loaded]);
        loaded += 1;
    }
    if (status == STATUS_OK) status = use_opencl(options, bundles);
    for (uint32_t i = 0; i < loaded; i++) bundle_free(&bundles[i]);
    free(bundles);
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
