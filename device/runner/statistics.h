/* What a list of times amounts to. */
#ifndef STRUCTADMM_STATISTICS_H
#define STRUCTADMM_STATISTICS_H

#include "json.h"

/* Sorts `values` in place. */
void sort_values(double *values, size_t count);

/* The value below which `fraction` of the sorted values lie, interpolated linearly as numpy.percentile does. */
double sorted_percentile(const double *sorted, size_t count, double fraction);

/* Prints {"min", "median", "mean", "p10", "p90", "p99"} under `key`. `room` holds `count` values and is overwritten. */
void print_statistics(const char *key, const double *values, size_t count, double *room);

/* Prints the values themselves under `key`. */
void print_values(const char *key, const double *values, size_t count);

#endif
