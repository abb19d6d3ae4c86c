#include "npy.h"

#include "checked.h"

/* The header is a Python dictionary literal such as {'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }. */
struct header {
    const char *at, *end;
};

static void skip_blanks(struct header *header) {
    while (header->at < header->end && *header->at == ' ') header->at++;
}

/* Steps over `token` and the blanks before it, if it is what comes next. */
static bool skip(struct header *header, const char *token) {
    skip_blanks(header);
    size_t length = strlen(token);
    if ((size_t)(header->end - header->at) < length || memcmp(header->at, token, length) != 0) return false;
    header->at += length;
    return true;
}

static bool parse_descr(struct header *header, enum dtype *dtype) {
    static const char *const codes[] = {"'<f4'", "'<f2'", "'<i4'"};
    for (int i = 0; i < 3; i++) {
        if (!skip(header, codes[i])) continue;
        *dtype = (enum dtype)i;
        return true;
    }
    return false;
}

static bool parse_dim(struct header *header, uint64_t *dim) {
    skip_blanks(header);
    const char *first = header->at;
    *dim = 0;
    while (header->at < header->end && *header->at >= '0' && *header->at <= '9') {
        if (!checked_multiply(*dim, 10, dim) || !checked_add(*dim, (uint64_t)(*header->at++ - '0'), dim)) return false;
    }
    return header->at > first;
}

static bool parse_shape(struct header *header, struct npy *array) {
    if (!skip(header, "(")) return false;
    while (!skip(header, ")")) {
        if (array->rank == MAX_RANK || !parse_dim(header, &array->dims[array->rank])) return false;
        array->rank += 1;
        if (!skip(header, ",")) return skip(header, ")");
    }
    return true;
}

/* Says which field of the dictionary it could not read, or NULL. */
static const char *parse_header(struct header header, struct npy *array) {
    unsigned seen = 0;
    if (!skip(&header, "{")) return "dictionary";
    while (!skip(&header, "}")) {
        if (skip(&header, "'descr':")) {
            if ((seen & 1) != 0 || !parse_descr(&header, &array->dtype)) return "dtype (float32, float16 or int32, little-endian)";
            seen |= 1;
        } else if (skip(&header, "'fortran_order':")) {
            if ((seen & 2) != 0 || !skip(&header, "False")) return "order (C, row-major)";
            seen |= 2;
        } else if (skip(&header, "'shape':")) {
            if ((seen & 4) != 0 || !parse_shape(&header, array)) return "shape";
            seen |= 4;
        } else {
            return "dictionary";
        }
        skip(&header, ",");
    }
    return seen == 7 ? NULL : "dictionary";
}

static bool find_size(struct npy *array) {
    array->size_bytes = dtype_size(array->dtype);
    for (uint32_t i = 0; i < array->rank; i++) {
        if (!checked_multiply(array->size_bytes, array->dims[i], &array->size_bytes)) return false;
    }
    return true;
}

int npy_parse(struct npy *array, const uint8_t *bytes, size_t size, const char *name, enum status blame) {
    memset(array, 0, sizeof *array);
    size_t common = size < 6 ? size : 6;
    if (size > 0 && memcmp(bytes, "\x93NUMPY", common) != 0) {
        return fail(blame, "'%.300s' is not a .npy file: write it with numpy.save", name);
    }
    size_t prefix = size > 6 && bytes[6] >= 2 ? 12 : 10; /* version 1 counts the header in 2 bytes, 2 and 3 in 4 */
    if (size < prefix) return fail(STATUS_TRUNCATED, "'%.300s' has %zu bytes, less than a .npy header: copy it again", name, size);
    uint64_t length = (uint64_t)bytes[8] | (uint64_t)bytes[9] << 8;
    if (prefix == 12) length |= (uint64_t)bytes[10] << 16 | (uint64_t)bytes[11] << 24;
    if (!range_fits(prefix, length, size)) {
        return fail(STATUS_TRUNCATED, "'%.300s' ends inside its .npy header: copy it again", name);
    }
    const char *text = (const char *)bytes + prefix;
    const char *wrong = parse_header((struct header){text, text + length}, array);
    if (wrong != NULL) return fail(blame, "'%.300s' has a .npy header whose %s is not readable: save it as C-order float32", name, wrong);
    if (!find_size(array)) return fail(blame, "'%.300s' has a shape with too many elements: save it again", name);
    uint64_t arrived = size - prefix - length;
    if (arrived < array->size_bytes) {
        return fail(STATUS_TRUNCATED, "'%.300s' holds %llu of its %llu bytes of data: copy it again", name,
                    (unsigned long long)arrived, (unsigned long long)array->size_bytes);
    }
    if (arrived > array->size_bytes) return fail(blame, "'%.300s' has bytes after its data: save it again", name);
    array->data = bytes + prefix + length;
    return STATUS_OK;
}

int npy_write(const char *path, const struct npy *array) {
    static const char *const codes[] = {"<f4", "<f2", "<i4"};
    char shape[256] = "", header[512];
    size_t used = 0;
    for (uint32_t i = 0; i < array->rank; i++) {
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%llu,", (unsigned long long)array->dims[i]);
    }
    int length = snprintf(header + 10, sizeof header - 10, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                          codes[array->dtype], shape);
    size_t total = 10 + (size_t)length + 1;
    size_t padded = (total + 63) / 64 * 64; /* data start at a multiple of 64, as numpy writes them */
    memset(header + total - 1, ' ', padded - total);
    header[padded - 1] = '\n';
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)((padded - 10) & 255);
    header[9] = (char)((padded - 10) >> 8);
    struct span spans[] = {{header, padded}, {array->data, array->size_bytes}};
    if (platform_write_file(path, spans, 2)) return STATUS_OK;
    return fail(STATUS_FILE, "cannot write '%.300s' (%s): check its directory and the free space", path, platform_error());
}
