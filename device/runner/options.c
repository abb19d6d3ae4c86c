#include "options.h"

const char help_text[] =
    "structadmm runner: runs networks compiled to OpenCL bundles\n"
    "\n"
    "  runner info                                          list the OpenCL devices\n"
    "  runner run BUNDLE --input F.npy ... --output F.npy ...  run; files in the bundle's order of inputs and outputs\n"
    "  runner check BUNDLE                                  run the bundle's sample and compare with what it expects\n"
    "  runner bench BUNDLE [BUNDLE ...]                     time bundles against each other, interleaved\n"
    "  runner profile BUNDLE                                time every launch with the device's own clock\n"
    "  runner help\n"
    "\n"
    "Options\n"
    "  --device D         PLATFORM.DEVICE as `info` lists them (0.1), or part of a device, vendor or platform name.\n"
    "                     Without it: the first GPU, else the first device.\n"
    "  --cache DIR        keep the driver's program binaries in DIR (created if absent) and start from them\n"
    "  --perf-hint X      on or off: ask Qualcomm's driver for high clocks, where it can be asked (on)\n"
    "  --priority-hint X  likewise for priority over other contexts (on)\n"
    "  --recording X      likewise: replay the launches from recordings, where the driver has them (on)\n"
    "  --samples N        run: each file holds N inferences along its first axis (1)\n"
    "  --runs N           bench, profile: timed runs of each bundle (200; profile 20)\n"
    "  --warmup-runs N    bench, profile: at least N runs of each bundle before any is timed (10; profile 3)\n"
    "  --warmup-ms MS     bench, profile: and at least MS milliseconds of them in all (200; profile 0)\n"
    "  --check X          profile: on or off: first what `check` does, and no times where that fails (off)\n"
    "  --rest-ms MS       bench: sleep between rounds (0)\n"
    "  --watch FILE       bench: print the number that FILE holds between rounds, such as a clock; up to 8 times\n"
    "  --hot-above N      bench: rest before a round while the first --watch file holds more than N (0: never)\n"
    "  --hot-until N      bench: until it holds no more than N (0)\n"
    "  --hot-rest-ms MS   bench: but no longer than MS milliseconds in all (60000)\n"
    "  --seed S           bench: seed of the order inside each round (0)\n"
    "  --launch-runs N    bench: then N rounds that time the launches alone, without transfers (20)\n"
    "\n"
    "stdout carries JSON lines and nothing else; an error is one line on stderr and an exit status of its own:\n"
    "  2 usage  3 file  4 changed byte  5 truncated  6 newer format  7 malformed bundle  8 wrong input\n"
    "  9 no OpenCL  10 no such device  11 OpenCL error  12 check failed  13 out of memory  14 beyond the device\n";

static int parse_count(const char *name, const char *text, uint64_t low, uint64_t high, uint64_t *value) {
    uint64_t sum = 0;
    bool valid = *text != 0 && strlen(text) <= 18;
    for (const char *c = text; valid && *c != 0; c++) {
        valid = *c >= '0' && *c <= '9';
        sum = sum * 10 + (uint64_t)(*c - '0');
    }
    *value = sum;
    if (valid && sum >= low && sum <= high) return STATUS_OK;
    return fail(STATUS_USAGE, "%s takes a whole number from %llu to %llu, got '%.40s': see `runner help`", name,
                (unsigned long long)low, (unsigned long long)high, text);
}

static int parse_switch(const char *name, const char *text, bool *value) {
    *value = strcmp(text, "on") == 0;
    if (*value || strcmp(text, "off") == 0) return STATUS_OK;
    return fail(STATUS_USAGE, "%s takes on or off, got '%.40s': see `runner help`", name, text);
}

static int add_file(const char *name, const char *value, const char **files, uint32_t *count) {
    if (*count == MAX_TENSORS) return fail(STATUS_USAGE, "more than %d times %s: give one per tensor", MAX_TENSORS, name);
    files[(*count)++] = value;
    return STATUS_OK;
}

static int add_watched(struct options *options, const char *path) {
    if (options->watched_count == MAX_WATCHED) return fail(STATUS_USAGE, "more than %d files to watch: choose the telling ones", MAX_WATCHED);
    options->watched[options->watched_count++] = path;
    return STATUS_OK;
}

static int add_bundle(struct options *options, const char *path) {
    if (options->bundle_count == MAX_BUNDLES) return fail(STATUS_USAGE, "more than %d bundles: bench fewer at a time", MAX_BUNDLES);
    options->bundles[options->bundle_count++] = path;
    return STATUS_OK;
}

/* Which commands take an option: a bit for each. */
enum { RUN = 1 << COMMAND_RUN, CHECK = 1 << COMMAND_CHECK, BENCH = 1 << COMMAND_BENCH, PROFILE = 1 << COMMAND_PROFILE };

static int set_option(struct options *options, const char *name, const char *value) {
    struct {
        const char *name;
        int commands;
        uint64_t *value;
        uint64_t low, high;
    } counts[] = {
        {"--runs", BENCH | PROFILE, &options->runs, 1, 1000000},
        {"--samples", RUN, &options->samples, 1, 1000000},
        {"--warmup-runs", BENCH | PROFILE, &options->warmup_runs, 0, 1000000},
        {"--warmup-ms", BENCH | PROFILE, &options->warmup_ms, 0, 600000},
        {"--rest-ms", BENCH, &options->rest_ms, 0, 60000},
        {"--seed", BENCH, &options->seed, 0, INT64_MAX},
        {"--launch-runs", BENCH, &options->launch_runs, 0, 1000000},
        {"--hot-above", BENCH, &options->hot_above, 0, 1000000000},
        {"--hot-until", BENCH, &options->hot_until, 0, 1000000000},
        {"--hot-rest-ms", BENCH, &options->hot_rest_ms, 0, 86400000},
    };
    int command = 1 << options->command;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (strcmp(name, counts[i].name) != 0 || (counts[i].commands & command) == 0) continue;
        return parse_count(name, value, counts[i].low, counts[i].high, counts[i].value);
    }
    if (strcmp(name, "--device") == 0 && (command & (RUN | CHECK | BENCH | PROFILE)) != 0) {
        options->device = value;
        return *value != 0 ? STATUS_OK : fail(STATUS_USAGE, "--device is empty: give an index or part of a name");
    }
    if (strcmp(name, "--cache") == 0 && (command & (RUN | CHECK | BENCH | PROFILE)) != 0) {
        options->cache = value;
        return *value != 0 ? STATUS_OK : fail(STATUS_USAGE, "--cache is empty: give a directory");
    }
    struct {
        const char *name;
        bool *value;
    } switches[] = {
        {"--perf-hint", &options->extras.perf_hint},
        {"--priority-hint", &options->extras.priority_hint},
        {"--recording", &options->extras.recording},
    };
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        if (strcmp(name, switches[i].name) != 0 || (command & (RUN | CHECK | BENCH | PROFILE)) == 0) continue;
        return parse_switch(name, value, switches[i].value);
    }
    if (strcmp(name, "--check") == 0 && command == PROFILE) return parse_switch(name, value, &options->check);
    if (strcmp(name, "--watch") == 0 && command == BENCH) return add_watched(options, value);
    if (strcmp(name, "--input") == 0 && command == RUN) return add_file(name, value, options->inputs, &options->input_count);
    if (strcmp(name, "--output") == 0 && command == RUN) return add_file(name, value, options->outputs, &options->output_count);
    return fail(STATUS_USAGE, "this command has no option '%.60s': see `runner help`", name);
}

static int parse_command(struct options *options, const char *word) {
    static const char *const names[] = {"info", "run", "check", "bench", "profile", "help"};
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) word = "help";
    for (int i = 0; i <= COMMAND_HELP; i++) {
        if (strcmp(word, names[i]) != 0) continue;
        options->command = (enum command)i;
        return STATUS_OK;
    }
    return fail(STATUS_USAGE, "unknown command '%.60s': expected info, run, check, bench, profile or help", word);
}

static int check_bundle_count(const struct options *options) {
    bool none = options->command == COMMAND_INFO || options->command == COMMAND_HELP;
    uint32_t low = none ? 0 : 1, high = none ? 0 : options->command == COMMAND_BENCH ? MAX_BUNDLES : 1;
    if (options->bundle_count >= low && options->bundle_count <= high) return STATUS_OK;
    return fail(STATUS_USAGE, "this command takes %s, got %u: see `runner help`",
                none ? "no bundle" : high == 1 ? "one bundle" : "one or more bundles", options->bundle_count);
}

int options_parse(struct options *options, int count, char **words) {
    memset(options, 0, sizeof *options);
    if (count < 2) return fail(STATUS_USAGE, "no command: expected info, run, check, bench, profile or help");
    int status = parse_command(options, words[1]);
    bool profile = options->command == COMMAND_PROFILE;
    options->runs = profile ? 20 : 200;
    options->warmup_runs = profile ? 3 : 10;
    options->warmup_ms = profile ? 0 : 200;
    options->launch_runs = 20;
    options->samples = 1;
    options->extras = (struct extras){true, true, true};
    options->hot_rest_ms = 60000;
    for (int i = 2; status == STATUS_OK && i < count; i++) {
        if (strcmp(words[i], "--help") == 0 || strcmp(words[i], "-h") == 0) {
            options->command = COMMAND_HELP;
            return STATUS_OK;
        }
        if (words[i][0] != '-') {
            status = add_bundle(options, words[i]);
        } else if (i + 1 == count) {
            status = fail(STATUS_USAGE, "'%.60s' has no value: see `runner help`", words[i]);
        } else {
            status = set_option(options, words[i], words[i + 1]);
            i += 1;
        }
    }
    return status != STATUS_OK ? status : check_bundle_count(options);
}
