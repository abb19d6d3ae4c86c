#include "program_cache.h"

#include "sha256.h"

/* A cached binary is this header, its payload's SHA-256, then the payload. */
static const char magic[] = "structadmm-binary 1\n";
enum { MAGIC_BYTES = sizeof magic - 1, HEADER_BYTES = MAGIC_BYTES + 32, MAX_CACHED_BYTES = 256 << 20 };

static void digest_of(const void *data, size_t size, uint8_t digest[32]) {
    struct sha256 hash;
    sha256_start(&hash);
    sha256_add(&hash, data, size);
    sha256_finish(&hash, digest);
}

/* Each part goes in with its length, so that no two lists of parts look alike. */
static void add_part(struct sha256 *hash, const char *part, size_t size) {
    uint64_t length = size;
    sha256_add(hash, &length, sizeof length);
    sha256_add(hash, part, size);
}

static bool cache_path(const struct session *session, const char *cache, const struct program_source *source, char *path, size_t size) {
    const struct device *device = &session->device;
    const char *const parts[] = {source->options, device->platform_name, device->platform_version, device->name,
                                 device->vendor,  device->driver,        device->version};
    struct sha256 hash;
    uint8_t digest[32];
    char hex[65];
    sha256_start(&hash);
    add_part(&hash, source->text, source->size);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) add_part(&hash, parts[i], strlen(parts[i]));
    sha256_finish(&hash, digest);
    sha256_hex(digest, hex);
    int length = snprintf(path, size, "%s/%s.clbin", cache, hex);
    return length > 0 && (size_t)length < size;
}

/* Some drivers' compilers write to stderr (PoCL 3.1: "1 error generated."), where one line of ours is promised; what they
 * have to say is in the build log. */
static cl_int build_quietly(const struct session *session, cl_program program, const char *options) {
    platform_mute_stderr(true);
    cl_int code = clBuildProgram(program, 1, &session->device.id, options, NULL, NULL);
    platform_mute_stderr(false);
    return code;
}

static cl_program program_from_binary(const struct session *session, const uint8_t *binary, size_t size, const char *options) {
    cl_int code, loaded;
    cl_program program = clCreateProgramWithBinary(session->context, 1, &session->device.id, &size, &binary, &loaded, &code);
    if (code != CL_SUCCESS) return NULL;
    if (loaded == CL_SUCCESS && build_quietly(session, program, options) == CL_SUCCESS) return program;
    clReleaseProgram(program);
    return NULL;
}

/* NULL when there is no usable binary: `counts` then says why, and the source is built instead. */
static cl_program load_cached(const struct session *session, const char *path, const char *options, struct cache_counts *counts) {
    uint8_t *file, digest[32];
    size_t size;
    if (platform_read_file(path, MAX_CACHED_BYTES, &file, &size) != READ_OK) {
        counts->misses += 1;
        return NULL;
    }
    bool intact = size > HEADER_BYTES && memcmp(file, magic, MAGIC_BYTES) == 0;
    if (intact) {
        digest_of(file + HEADER_BYTES, size - HEADER_BYTES, digest);
        intact = memcmp(file + MAGIC_BYTES, digest, 32) == 0;
    }
    cl_program program = NULL;
    if (!intact) {
        counts->damaged += 1;
    } else {
        program = program_from_binary(session, file + HEADER_BYTES, size - HEADER_BYTES, options);
        counts->hits += program != NULL;
        counts->refused += program == NULL;
    }
    free(file);
    return program;
}

static int store(const char *cache, const char *path, cl_program program) {
    size_t size = 0;
    /* A driver that gives no binary is slower to start, not wrong. */
    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS) return STATUS_OK;
    if (size == 0 || size > MAX_CACHED_BYTES - HEADER_BYTES) return STATUS_OK;
    uint8_t *binary = malloc(size), digest[32];
    if (binary == NULL) return fail(STATUS_MEMORY, "out of memory for a program binary of %zu bytes", size);
    int status = STATUS_OK;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) == CL_SUCCESS) {
        digest_of(binary, size, digest);
        struct span spans[] = {{magic, MAGIC_BYTES}, {digest, sizeof digest}, {binary, size}};
        if (!platform_make_directory(cache) || !platform_write_file(path, spans, 3)) {
            status = fail(STATUS_FILE, "cannot write '%.500s' (%s): give --cache a writable directory with free space", path,
                          platform_error());
        }
    }
    free(binary);
    return status;
}

/* The log's first line that speaks of an error, for the one line on stderr. */
static void first_error(const char *log, char *line, size_t size) {
    const char *at = strstr(log, "error");
    const char *start = at != NULL ? at : log;
    while (start > log && start[-1] != '\n') start--;
    size_t length = strcspn(start, "\n");
    snprintf(line, size, "%.*s", (int)(length < 400 ? length : 400), start);
}

static int report_build_failure(const struct session *session, const struct program_source *source, cl_program program, cl_int code) {
    size_t size = 0;
    char line[420] = "no build log";
    if (clGetProgramBuildInfo(program, session->device.id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) != CL_SUCCESS) size = 0;
    char *log = size > 0 && size <= 1 << 20 ? calloc(size + 1, 1) : NULL;
    if (log != NULL && clGetProgramBuildInfo(program, session->device.id, CL_PROGRAM_BUILD_LOG, size, log, NULL) == CL_SUCCESS) {
        first_error(log, line, sizeof line);
        json_begin("build_log");
        json_uint("program", source->number);
        json_string("options", source->options);
        json_string("log", log);
        json_end(); /* if stdout is gone, that failure is the first and stays the one that is told */
    }
    free(log);
    return opencl_failed(code, "clBuildProgram", "program %u (options '%.100s'): %s", source->number, source->options, line);
}

static int build_source(const struct session *session, const struct program_source *source, cl_program *program) {
    cl_int code;
    *program = clCreateProgramWithSource(session->context, 1, (const char *[]){source->text}, &source->size, &code);
    if (code != CL_SUCCESS) return opencl_failed(code, "clCreateProgramWithSource", "program %u", source->number);
    code = build_quietly(session, *program, source->options);
    if (code == CL_SUCCESS) return STATUS_OK;
    int status = report_build_failure(session, source, *program, code);
    clReleaseProgram(*program);
    *program = NULL;
    return status;
}

int program_build(const struct session *session, const char *cache, const struct program_source *source,
                  struct cache_counts *counts, cl_program *program) {
    char path[4000];
    if (cache == NULL) return build_source(session, source, program);
    if (!cache_path(session, cache, source, path, sizeof path)) {
        return fail(STATUS_USAGE, "--cache '%.80s...' is too long a path: give a shorter one", cache);
    }
    *program = load_cached(session, path, source->options, counts);
    if (*program != NULL) return STATUS_OK;
    int status = build_source(session, source, program);
    return status != STATUS_OK ? status : store(cache, path, *program);
}
