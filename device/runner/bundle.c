#include "bundle.h"

#include "sha256.h"

#define MAX_FILE_BYTES ((size_t)1 << 36)

static int read_file(const char *directory, const char *name, uint8_t **data, size_t *size) {
    char path[MAX_PATH_BYTES + MAX_NAME_BYTES + 2];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    switch (platform_read_file(path, MAX_FILE_BYTES, data, size)) {
        case READ_OK: return STATUS_OK;
        case READ_NO_MEMORY: return fail(STATUS_MEMORY, "out of memory for '%.600s'", path);
        case READ_TOO_LARGE: return fail(STATUS_MALFORMED, "'%.600s' is larger than any bundle file may be", path);
        default: return fail(STATUS_FILE, "cannot read '%.600s' (%s): give the path of a complete bundle", path, platform_error());
    }
}

static struct bundle_file *find_file(struct bundle *bundle, const char *name) {
    for (uint32_t i = 0; i < bundle->file_count; i++) {
        if (strcmp(bundle->files[i].name, name) == 0) return &bundle->files[i];
    }
    return NULL;
}

/* plan.txt goes first and alone: nothing else of a newer format is looked at. */
static int check_version(const char *path) {
    uint8_t *text;
    size_t size;
    int status = read_file(path, "plan.txt", &text, &size);
    if (status != STATUS_OK) return status;
    status = plan_check_version((const char *)text, size);
    free(text);
    return status;
}

static int list_files(struct bundle *bundle) {
    static const char *const required[] = {"kernels.cl", "manifest.json", "plan.txt", "weights.bin"};
    uint8_t *text;
    size_t size;
    int status = read_file(bundle->path, "SHA256SUMS", &text, &size);
    if (status != STATUS_OK) return status;
    status = sums_parse(bundle, (const char *)text, size);
    free(text);
    for (size_t i = 0; status == STATUS_OK && i < sizeof required / sizeof *required; i++) {
        if (find_file(bundle, required[i]) != NULL) continue;
        status = fail(STATUS_TRUNCATED, "SHA256SUMS of '%.300s' lists no %s: copy the bundle again", bundle->path, required[i]);
    }
    return status;
}

static bool digest_agrees(const struct bundle_file *file) {
    struct sha256 hash;
    uint8_t digest[32];
    char hex[65];
    sha256_start(&hash);
    sha256_add(&hash, file->data, file->size);
    sha256_finish(&hash, digest);
    sha256_hex(digest, hex);
    return strcmp(hex, file->digest_hex) == 0;
}

static bool ends_with(const struct bundle_file *file, const char *ending) {
    size_t length = strlen(ending);
    return file->size >= length && memcmp(file->data + file->size - length, ending, length) == 0;
}

/* Whether a binary file is shorter than an intact plan.txt says it must be. */
static bool shorter_than_planned(struct bundle *bundle, const struct bundle_file *file) {
    const struct bundle_file *text = find_file(bundle, "plan.txt");
    if (text->data == NULL || !digest_agrees(text)) return false;
    struct plan plan;
    bool shorter = false;
    if (plan_parse(&plan, (const char *)text->data, text->size) == STATUS_OK) {
        bool kernels = strcmp(file->name, "kernels.cl") == 0, weights = strcmp(file->name, "weights.bin") == 0;
        shorter = (kernels && file->size < plan_kernels_bytes(&plan)) || (weights && file->size < plan_weights_bytes(&plan));
    }
    plan_free(&plan);
    forget_failure();
    return shorter;
}

static bool is_cut_array(const struct bundle_file *file) {
    struct npy array;
    bool cut = npy_parse(&array, file->data, file->size, file->name, STATUS_MALFORMED) == STATUS_TRUNCATED;
    forget_failure();
    return cut;
}

/* SHA256SUMS holds no sizes, so what a file with a wrong digest should look like tells a cut file from a changed one. */
static bool looks_truncated(struct bundle *bundle, const struct bundle_file *file) {
    size_t length = strlen(file->name);
    if (file->size == 0) return true;
    if (strcmp(file->name, "plan.txt") == 0) return !ends_with(file, "\nend\n");
    if (strcmp(file->name, "manifest.json") == 0) return !ends_with(file, "}\n") && !ends_with(file, "}");
    if (length > 4 && strcmp(file->name + length - 4, ".npy") == 0) return is_cut_array(file);
    return shorter_than_planned(bundle, file);
}

static int verify_files(struct bundle *bundle) {
    for (uint32_t i = 0; i < bundle->file_count; i++) {
        struct bundle_file *file = &bundle->files[i];
        int status = read_file(bundle->path, file->name, &file->data, &file->size);
        if (status != STATUS_OK) return status;
    }
    for (uint32_t i = 0; i < bundle->file_count; i++) {
        const struct bundle_file *file = &bundle->files[i];
        if (digest_agrees(file)) continue;
        if (looks_truncated(bundle, file)) {
            return fail(STATUS_TRUNCATED, "'%.300s/%s' is cut off after %zu bytes: copy the bundle again", bundle->path,
                        file->name, file->size);
        }
        return fail(STATUS_INTEGRITY, "'%.300s/%s' differs from its SHA-256 in SHA256SUMS: copy or build the bundle again",
                    bundle->path, file->name);
    }
    return STATUS_OK;
}

int check_array(const struct plan_tensor *tensor, const struct npy *array, const char *name, enum status blame) {
    bool same = array->dtype == tensor->dtype && array->rank == tensor->rank;
    for (uint32_t i = 0; same && i < tensor->rank; i++) same = array->dims[i] == tensor->dims[i];
    if (same) return STATUS_OK;
    char expected[200], arrived[200];
    format_shape(tensor->dims, tensor->rank, expected, sizeof expected);
    format_shape(array->dims, array->rank, arrived, sizeof arrived);
    return fail(blame, "'%s' takes %s %s, '%.200s' holds %s %s: give an array of that shape and dtype", tensor->name,
                dtype_name(tensor->dtype), expected, name, dtype_name(array->dtype), arrived);
}

static int load_sample(struct bundle *bundle, const struct plan_tensor *tensor, bool output, struct npy *array) {
    const struct bundle_file *file = find_file(bundle, tensor->sample_file);
    if (file == NULL) {
        return fail(STATUS_MALFORMED, "sample '%s' is not listed in SHA256SUMS: rebuild the bundle", tensor->sample_file);
    }
    int status = npy_parse(array, file->data, file->size, file->name, STATUS_MALFORMED);
    if (status != STATUS_OK) return status;
    struct plan_tensor expected = *tensor;
    /* The expected output may be kept in float32 though the network puts out halves. */
    if (output && array->dtype == DTYPE_FLOAT32) expected.dtype = DTYPE_FLOAT32;
    return check_array(&expected, array, file->name, STATUS_MALFORMED);
}

static int load_samples(struct bundle *bundle) {
    const struct plan *plan = &bundle->plan;
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < plan->input_count; i++) {
        status = load_sample(bundle, &plan->inputs[i], false, &bundle->sample_inputs[i]);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < plan->output_count; i++) {
        status = load_sample(bundle, &plan->outputs[i], true, &bundle->sample_outputs[i]);
    }
    return status;
}

static int load(struct bundle *bundle) {
    int status = check_version(bundle->path);
    if (status == STATUS_OK) status = list_files(bundle);
    if (status == STATUS_OK) status = verify_files(bundle);
    if (status != STATUS_OK) return status;
    const struct bundle_file *text = find_file(bundle, "plan.txt");
    bundle->kernels = find_file(bundle, "kernels.cl");
    bundle->weights = find_file(bundle, "weights.bin");
    status = plan_parse(&bundle->plan, (const char *)text->data, text->size);
    if (status == STATUS_OK) status = plan_check_ranges(&bundle->plan, bundle->kernels->size, bundle->weights->size);
    return status != STATUS_OK ? status : load_samples(bundle);
}

int bundle_load(struct bundle *bundle, const char *path) {
    int64_t start = platform_now_ns();
    memset(bundle, 0, sizeof *bundle);
    if (strlen(path) >= sizeof bundle->path) {
        return fail(STATUS_FILE, "a bundle path has %zu bytes, more than %d: use a shorter one", strlen(path), MAX_PATH_BYTES - 1);
    }
    memcpy(bundle->path, path, strlen(path) + 1);
    int status = load(bundle);
    if (status != STATUS_OK) bundle_free(bundle);
    bundle->load_ms = (double)(platform_now_ns() - start) / 1e6;
    return status;
}

void bundle_free(struct bundle *bundle) {
    for (uint32_t i = 0; i < bundle->file_count; i++) free(bundle->files[i].data);
    plan_free(&bundle->plan);
    bundle->file_count = 0;
}
