#include "statistics.h"

static int ascending(const void *left, const void *right) {
    double a, b;
    memcpy(&a, left, sizeof a);
    memcpy(&b, right, sizeof b);
    return (a > b) - (a < b);
}

void sort_values(double *values, size_t count) { qsort(values, count, sizeof *values, ascending); }

double sorted_percentile(const double *sorted, size_t count, double fraction) {
    double position = fraction * (double)(count - 1);
    size_t below = (size_t)position;
    size_t above = below + 1 < count ? below + 1 : below;
    return sorted[below] + (position - (double)below) * (sorted[above] - sorted[below]);
}

void print_statistics(const char *key, const double *values, size_t count, double *room) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += values[i];
    memcpy(room, values, count * sizeof *values);
    sort_values(room, count);
    json_open(key, '{');
    json_double("min", room[0]);
    json_double("median", sorted_percentile(room, count, 0.5));
    json_double("mean", sum / (double)count);
    json_double("p10", sorted_percentile(room, count, 0.1));
    json_double("p90", sorted_percentile(room, count, 0.9));
    json_double("p99", sorted_percentile(room, count, 0.99));
    json_close('}');
}

void print_values(const char *key, const double *values, size_t count) {
    json_open(key, '[');
    for (size_t i = 0; i < count; i++) json_double(NULL, values[i]);
    json_close(']');
}
