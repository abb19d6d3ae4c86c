/* JSON lines on stdout: one object per line, written as it is built. */
#ifndef STRUCTADMM_JSON_H
#define STRUCTADMM_JSON_H

#include "status.h"

void json_begin(const char *event); /* opens the line's object with its "event" */
int json_end(void);                 /* closes it and writes it out; STATUS_FILE when stdout is gone */

/* `key` is NULL inside an array. Bytes outside ASCII are escaped as Latin-1, so a line is always valid JSON. */
void json_string(const char *key, const char *value);
void json_uint(const char *key, uint64_t value);
void json_double(const char *key, double value); /* NaN and infinity become null */
void json_bool(const char *key, bool value);
void json_open(const char *key, char bracket); /* '{' or '[' */
void json_close(char bracket);                 /* '}' or ']' */

#endif
