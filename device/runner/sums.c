/* SHA256SUMS: one line "HEX  NAME" for each file of a bundle, sorted by name. */
#include "bundle.h"

static bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

static int parse_entry(struct bundle *bundle, const char *line, size_t length, uint32_t number) {
    size_t hex = 0;
    while (hex < length && hex < 64 && is_hex(line[hex])) hex++;
    bool shaped = hex == 64 && length > 66 && length <= 66 + MAX_NAME_BYTES && line[64] == ' ' && line[65] == ' ';
    if (!shaped || memchr(line, 0, length) != NULL) {
        return fail(STATUS_MALFORMED, "SHA256SUMS line %u: expected 64 hex digits, two spaces and a name: rebuild the bundle", number);
    }
    if (bundle->file_count == MAX_BUNDLE_FILES) {
        return fail(STATUS_MALFORMED, "SHA256SUMS lists more than %d files: rebuild the bundle", MAX_BUNDLE_FILES);
    }
    struct bundle_file *file = &bundle->files[bundle->file_count];
    memcpy(file->digest_hex, line, 64);
    file->digest_hex[64] = 0;
    memcpy(file->name, line + 66, length - 66);
    file->name[length - 66] = 0;
    if (!is_plain_file_name(file->name)) {
        return fail(STATUS_MALFORMED, "SHA256SUMS line %u: '%.80s' is not a plain file name: rebuild the bundle", number, file->name);
    }
    if (bundle->file_count > 0 && strcmp(file[-1].name, file->name) >= 0) {
        return fail(STATUS_MALFORMED, "SHA256SUMS line %u: '%.80s' is not sorted after '%.80s': rebuild the bundle", number,
                    file->name, file[-1].name);
    }
    bundle->file_count += 1;
    return STATUS_OK;
}

int sums_parse(struct bundle *bundle, const char *text, size_t size) {
    const char *end = text + size;
    for (uint32_t number = 1; text < end; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        if (newline == NULL) return fail(STATUS_TRUNCATED, "SHA256SUMS ends inside line %u: copy the bundle again", number);
        int status = parse_entry(bundle, text, (size_t)(newline - text), number);
        if (status != STATUS_OK) return status;
        text = newline + 1;
    }
    return STATUS_OK;
}
