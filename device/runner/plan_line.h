/* Reading one line of plan.txt: fields separated by one space, checked as they are taken. */
#ifndef STRUCTADMM_PLAN_LINE_H
#define STRUCTADMM_PLAN_LINE_H

#include "plan.h"

struct plan_line {
    char *rest;      /* what has not been taken yet; NULL when nothing is left */
    uint32_t number; /* from 1 */
};

/* Each takes the next field, called `what` in messages, or fails with STATUS_MALFORMED. */
int take_word(struct plan_line *line, const char *what, const char **word);
int take_name(struct plan_line *line, const char *what, const char **name);
int take_uint(struct plan_line *line, const char *what, uint64_t low, uint64_t high, uint64_t *value);
int take_index(struct plan_line *line, const char *what, uint32_t count, uint32_t *index);
int take_tolerance(struct plan_line *line, double *tolerance);
int take_argument(struct plan_line *line, struct plan_argument *argument); /* memory indices are not checked here */
int take_end(struct plan_line *line); /* nothing may be left */

bool is_name(const char *text);

#endif
