#include "json.h"

static char pending[1 << 16];
static size_t used;
static bool need_comma;
static bool broken;

static void flush(void) {
    if (!broken && !platform_write(1, pending, used)) broken = true;
    used = 0;
}

static void put(const char *text, size_t size) {
    if (size > sizeof pending - used) flush();
    memcpy(pending + used, text, size);
    used += size;
}

static void put_text(const char *text) { put(text, strlen(text)); }

static void put_quoted(const char *value) {
    put_text("\"");
    for (const char *c = value; *c != 0; c++) {
        unsigned char byte = (unsigned char)*c;
        char escaped[8];
        if (byte == '"' || byte == '\\') {
            snprintf(escaped, sizeof escaped, "\\%c", byte);
        } else if (byte < 0x20 || byte >= 0x7f) {
            snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        } else {
            snprintf(escaped, sizeof escaped, "%c", byte);
        }
        put_text(escaped);
    }
    put_text("\"");
}

static void put_key(const char *key) {
    if (need_comma) put_text(",");
    need_comma = true;
    if (key == NULL) return;
    put_quoted(key);
    put_text(":");
}

void json_begin(const char *event) {
    need_comma = false;
    json_open(NULL, '{');
    json_string("event", event);
}

int json_end(void) {
    json_close('}');
    put_text("\n");
    flush();
    if (broken) return fail(STATUS_FILE, "cannot write results to stdout (%s): keep the reader open", platform_error());
    return STATUS_OK;
}

void json_string(const char *key, const char *value) {
    put_key(key);
    put_quoted(value);
}

void json_uint(const char *key, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    put_key(key);
    put_text(text);
}

void json_double(const char *key, double value) {
    char text[40] = "null";
    if (value - value == 0.0) snprintf(text, sizeof text, "%.12g", value); /* infinity - infinity is NaN */
    put_key(key);
    put_text(text);
}

void json_bool(const char *key, bool value) {
    put_key(key);
    put_text(value ? "true" : "false");
}

void json_open(const char *key, char bracket) {
    put_key(key);
    put(&bracket, 1);
    need_comma = false;
}

void json_close(char bracket) {
    put(&bracket, 1);
    need_comma = true;
}
