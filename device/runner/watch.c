#include "watch.h"

void watch_begin(struct watch *watch, const struct options *options, int64_t start_ns) {
    watch->options = options;
    watch->start_ns = start_ns;
    watch->interval_ns = (int64_t)WATCH_INTERVAL_MS * 1000000;
    watch->count = 0;
    watch->cooling_ms = 0;
    watch->rests = 0;
}

/* A measurement of hours keeps as many samples as one of minutes: every second one goes, and fewer come. */
static void thin_out(struct watch *watch) {
    for (uint32_t i = 0; i < WATCH_SAMPLES / 2; i++) {
        watch->at_ms[i] = watch->at_ms[2 * i];
        for (uint32_t k = 0; k < watch->options->watched_count; k++) watch->values[k][i] = watch->values[k][2 * i];
    }
    watch->count = WATCH_SAMPLES / 2;
    watch->interval_ns *= 2;
}

void watch_sample(struct watch *watch, bool demanded) {
    const struct options *options = watch->options;
    if (options->watched_count == 0) return;
    double now_ms = (double)(platform_now_ns() - watch->start_ns) / 1e6;
    bool recent = watch->count > 0 && now_ms - watch->at_ms[watch->count - 1] < (double)watch->interval_ns / 1e6;
    if (recent && !demanded) return;
    if (watch->count == WATCH_SAMPLES) thin_out(watch);
    uint32_t at = watch->count++;
    watch->at_ms[at] = now_ms;
    for (uint32_t k = 0; k < options->watched_count; k++) watch->values[k][at] = platform_read_number(options->watched[k]);
}

bool watch_cool_down(struct watch *watch) {
    const struct options *options = watch->options;
    if (options->hot_above == 0 || watch->count == 0) return false;
    /* A value that cannot be read is NaN, and NaN is neither hot nor a reason to go on resting. */
    double heat = watch->values[0][watch->count - 1];
    if (!(heat > (double)options->hot_above)) return false;
    int64_t start = platform_now_ns();
    double before_ms = watch->cooling_ms;
    /* What is read now says nothing about the rounds: a device at rest lowers its clock. */
    while (watch->cooling_ms < (double)options->hot_rest_ms && heat > (double)options->hot_until) {
        platform_sleep_ms(WATCH_INTERVAL_MS);
        watch->cooling_ms = before_ms + (double)(platform_now_ns() - start) / 1e6;
        heat = platform_read_number(options->watched[0]);
    }
    bool rested = watch->cooling_ms > before_ms;
    watch->rests += rested;
    return rested;
}

int watch_print(const struct watch *watch) {
    if (watch->options->watched_count == 0) return STATUS_OK;
    json_begin("watch");
    json_uint("rests", watch->rests);
    json_double("cooling_ms", watch->cooling_ms);
    print_values("at_ms", watch->at_ms, watch->count);
    json_open("values", '[');
    for (uint32_t k = 0; k < watch->options->watched_count; k++) print_values(NULL, watch->values[k], watch->count);
    json_close(']');
    return json_end();
}
