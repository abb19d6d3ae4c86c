#include "plan_line.h"

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_name_character(char c) {
    return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c != 0 && strchr("_.:/+-", c) != NULL);
}

bool is_name(const char *text) {
    size_t length = 0;
    while (is_name_character(text[length])) length++;
    return text[length] == 0 && length >= 1 && length <= MAX_NAME_BYTES;
}

int take_word(struct plan_line *line, const char *what, const char **word) {
    if (line->rest == NULL) {
        return fail(STATUS_MALFORMED, "plan.txt line %u ends where %s is expected: rebuild the bundle", line->number, what);
    }
    *word = line->rest;
    char *space = strchr(line->rest, ' ');
    if (space != NULL) *space = 0;
    line->rest = space != NULL ? space + 1 : NULL;
    if (**word != 0) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: expected %s, got an empty field: rebuild the bundle", line->number, what);
}

static int bad_field(const struct plan_line *line, const char *what, const char *word) {
    return fail(STATUS_MALFORMED, "plan.txt line %u: expected %s, got '%.80s': rebuild the bundle", line->number, what, word);
}

int take_name(struct plan_line *line, const char *what, const char **name) {
    int status = take_word(line, what, name);
    if (status != STATUS_OK) return status;
    return is_name(*name) ? STATUS_OK : bad_field(line, what, *name);
}

static bool parse_uint(const char *text, uint64_t *value) {
    uint64_t sum = 0;
    if (*text == 0) return false;
    for (; *text != 0; text++) {
        if (!is_digit(*text)) return false;
        if (__builtin_mul_overflow(sum, (uint64_t)10, &sum)) return false;
        if (__builtin_add_overflow(sum, (uint64_t)(*text - '0'), &sum)) return false;
    }
    *value = sum;
    return true;
}

int take_uint(struct plan_line *line, const char *what, uint64_t low, uint64_t high, uint64_t *value) {
    const char *word;
    int status = take_word(line, what, &word);
    if (status != STATUS_OK) return status;
    if (parse_uint(word, value) && *value >= low && *value <= high) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u: expected %s from %llu to %llu, got '%.40s': rebuild the bundle",
                line->number, what, (unsigned long long)low, (unsigned long long)high, word);
}

int take_index(struct plan_line *line, const char *what, uint32_t count, uint32_t *index) {
    if (count == 0) {
        return fail(STATUS_MALFORMED, "plan.txt line %u refers to %s, and there is none: rebuild the bundle", line->number, what);
    }
    uint64_t value = 0;
    int status = take_uint(line, what, 0, count - 1, &value);
    *index = (uint32_t)value;
    return status;
}

/* A number as strtod reads it, with no blank before it and nothing after it; never NaN. */
static bool parse_real(const char *text, double *value) {
    if (*text == 0 || *text == ' ' || strlen(text) > 64) return false;
    char *end;
    *value = strtod(text, &end);
    return *end == 0 && *value == *value;
}

int take_tolerance(struct plan_line *line, double *tolerance) {
    const char *word;
    int status = take_word(line, "a tolerance", &word);
    if (status != STATUS_OK) return status;
    if (parse_real(word, tolerance) && *tolerance >= 0 && *tolerance <= DBL_MAX) return STATUS_OK;
    return bad_field(line, "a tolerance", word);
}

static bool parse_int32(const char *text, int32_t *value) {
    bool negative = *text == '-';
    uint64_t magnitude;
    if (!parse_uint(text + negative, &magnitude) || magnitude > (uint64_t)INT32_MAX + negative) return false;
    *value = (int32_t)(negative ? -(int64_t)magnitude : (int64_t)magnitude);
    return true;
}

int take_argument(struct plan_line *line, struct plan_argument *argument) {
    const char *word;
    uint64_t index = 0;
    double real = 0;
    bool valid = false;
    int status = take_word(line, "a kernel argument", &word);
    if (status != STATUS_OK) return status;
    if (word[0] == 'm') {
        argument->kind = ARGUMENT_MEMORY;
        valid = parse_uint(word + 1, &index) && index < MAX_MEMORIES;
        argument->memory = valid ? (uint32_t)index : 0;
    } else if (word[0] == 'i') {
        argument->kind = ARGUMENT_INT;
        valid = parse_int32(word + 1, &argument->integer);
    } else if (word[0] == 'f') {
        argument->kind = ARGUMENT_FLOAT;
        /* A finite decimal beyond float32 is a mistake; an infinity is a value (the start of a maximum). */
        valid = parse_real(word + 1, &real) && (real - real != 0 || (real <= FLT_MAX && real >= -FLT_MAX));
        argument->real = valid ? (float)real : 0.0f;
    }
    return valid ? STATUS_OK : bad_field(line, "a kernel argument mID, iVALUE or fVALUE", word);
}

int take_end(struct plan_line *line) {
    if (line->rest == NULL) return STATUS_OK;
    return fail(STATUS_MALFORMED, "plan.txt line %u has '%.40s' after its last field: rebuild the bundle", line->number, line->rest);
}
