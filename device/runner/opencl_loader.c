#include "opencl_loader.h"

#define CL_DEFINE(result, name, parameters) result(*name) parameters;
CL_FUNCTIONS(CL_DEFINE)
CL_RECORDING_FUNCTIONS(CL_DEFINE)
#undef CL_DEFINE

static char loaded_from[512];

/* Google's wrapper on Pixel phones exports no cl function: it hands them out once it has been enabled. */
static const char pixel_library[] = "libOpenCL-pixel.so";
static void *(*pixel_function)(const char *name);

/* The paths are where Android vendors keep theirs; they are absent elsewhere. */
static const char *const usual[] = {"/vendor/lib64/libOpenCL.so", "/system/vendor/lib64/libOpenCL.so", "/system/lib64/libOpenCL.so",
                                    pixel_library, "libOpenCL.so.1", "libOpenCL.so"};

static void *open_usual_library(char *reason, size_t reason_size) {
    bool there = false;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        void *library = platform_open_library(usual[i]);
        snprintf(loaded_from, sizeof loaded_from, "%s", usual[i]);
        if (library != NULL) return library;
        /* Why a library that is there does not load says more than that another one is not there. */
        if (!there) snprintf(reason, reason_size, "%s", platform_library_error());
        there = there || (usual[i][0] == '/' && platform_is_readable(usual[i]));
    }
    return NULL;
}

static int enable_pixel_library(void *library) {
    void *symbol = platform_library_symbol(library, "enableOpenCL");
    void *function = platform_library_symbol(library, "loadOpenCLPointer");
    if (symbol == NULL || function == NULL) {
        return fail(STATUS_NO_OPENCL, "'%s' has no enableOpenCL or no loadOpenCLPointer: set STRUCTADMM_OPENCL_LIBRARY to another library",
                    pixel_library);
    }
    void (*enable)(void);
    memcpy(&enable, &symbol, sizeof enable);
    memcpy(&pixel_function, &function, sizeof pixel_function);
    enable();
    return STATUS_OK;
}

static void *find_function(void *library, const char *name) {
    return pixel_function != NULL ? pixel_function(name) : platform_library_symbol(library, name);
}

static int open_library(void **library) {
    char reason[400] = "";
    const char *chosen = getenv("STRUCTADMM_OPENCL_LIBRARY");
    if (chosen != NULL && *chosen != 0) {
        snprintf(loaded_from, sizeof loaded_from, "%s", chosen);
        *library = platform_open_library(chosen);
        if (*library != NULL) return STATUS_OK;
        return fail(STATUS_NO_OPENCL, "STRUCTADMM_OPENCL_LIBRARY names no loadable library (%s): correct or unset it",
                    platform_library_error());
    }
    *library = open_usual_library(reason, sizeof reason);
    if (*library != NULL) return STATUS_OK;
    return fail(STATUS_NO_OPENCL, "no OpenCL library on this machine (%s): install an OpenCL driver, or set STRUCTADMM_OPENCL_LIBRARY",
                reason);
}

/* A data pointer may not be converted to a function pointer in C, but its bytes may be copied. */
#define CL_RESOLVE(result, name, parameters)                                                                         \
    symbol = find_function(library, #name);                                                                          \
    if (symbol == NULL) {                                                                                            \
        return fail(STATUS_NO_OPENCL, "'%s' has no %s: the runner needs OpenCL 1.2 or later", loaded_from, #name);   \
    }                                                                                                                \
    memcpy(&name, &symbol, sizeof name);

#define CL_RESOLVE_OPTIONAL(result, name, parameters) \
    symbol = find_function(library, #name);           \
    memcpy(&name, &symbol, sizeof name);

int opencl_load(void) {
    void *library, *symbol;
    int status = open_library(&library);
    if (status == STATUS_OK && strstr(loaded_from, pixel_library) != NULL) status = enable_pixel_library(library);
    if (status != STATUS_OK) return status;
    CL_FUNCTIONS(CL_RESOLVE)
    CL_RECORDING_FUNCTIONS(CL_RESOLVE_OPTIONAL)
    return STATUS_OK;
}

bool opencl_can_record(void) {
    return clNewRecordingQCOM != NULL && clEndRecordingQCOM != NULL && clReleaseRecordingQCOM != NULL && clEnqueueRecordingQCOM != NULL;
}

const char *opencl_library(void) { return loaded_from; }

static const struct {
    cl_int code;
    const char *name;
} codes[] = {
    {0, "CL_SUCCESS"},
    {-1, "CL_DEVICE_NOT_FOUND"},
    {-2, "CL_DEVICE_NOT_AVAILABLE"},
    {-3, "CL_COMPILER_NOT_AVAILABLE"},
    {-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE"},
    {-5, "CL_OUT_OF_RESOURCES"},
    {-6, "CL_OUT_OF_HOST_MEMORY"},
    {-7, "CL_PROFILING_INFO_NOT_AVAILABLE"},
    {-8, "CL_MEM_COPY_OVERLAP"},
    {-9, "CL_IMAGE_FORMAT_MISMATCH"},
    {-10, "CL_IMAGE_FORMAT_NOT_SUPPORTED"},
    {-11, "CL_BUILD_PROGRAM_FAILURE"},
    {-12, "CL_MAP_FAILURE"},
    {-13, "CL_MISALIGNED_SUB_BUFFER_OFFSET"},
    {-14, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"},
    {-15, "CL_COMPILE_PROGRAM_FAILURE"},
    {-16, "CL_LINKER_NOT_AVAILABLE"},
    {-17, "CL_LINK_PROGRAM_FAILURE"},
    {-18, "CL_DEVICE_PARTITION_FAILED"},
    {-19, "CL_KERNEL_ARG_INFO_NOT_AVAILABLE"},
    {-30, "CL_INVALID_VALUE"},
    {-31, "CL_INVALID_DEVICE_TYPE"},
    {-32, "CL_INVALID_PLATFORM"},
    {-33, "CL_INVALID_DEVICE"},
    {-34, "CL_INVALID_CONTEXT"},
    {-35, "CL_INVALID_QUEUE_PROPERTIES"},
    {-36, "CL_INVALID_COMMAND_QUEUE"},
    {-37, "CL_INVALID_HOST_PTR"},
    {-38, "CL_INVALID_MEM_OBJECT"},
    {-39, "CL_INVALID_IMAGE_FORMAT_DESCRIPTOR"},
    {-40, "CL_INVALID_IMAGE_SIZE"},
    {-41, "CL_INVALID_SAMPLER"},
    {-42, "CL_INVALID_BINARY"},
    {-43, "CL_INVALID_BUILD_OPTIONS"},
    {-44, "CL_INVALID_PROGRAM"},
    {-45, "CL_INVALID_PROGRAM_EXECUTABLE"},
    {-46, "CL_INVALID_KERNEL_NAME"},
    {-47, "CL_INVALID_KERNEL_DEFINITION"},
    {-48, "CL_INVALID_KERNEL"},
    {-49, "CL_INVALID_ARG_INDEX"},
    {-50, "CL_INVALID_ARG_VALUE"},
    {-51, "CL_INVALID_ARG_SIZE"},
    {-52, "CL_INVALID_KERNEL_ARGS"},
    {-53, "CL_INVALID_WORK_DIMENSION"},
    {-54, "CL_INVALID_WORK_GROUP_SIZE"},
    {-55, "CL_INVALID_WORK_ITEM_SIZE"},
    {-56, "CL_INVALID_GLOBAL_OFFSET"},
    {-57, "CL_INVALID_EVENT_WAIT_LIST"},
    {-58, "CL_INVALID_EVENT"},
    {-59, "CL_INVALID_OPERATION"},
    {-60, "CL_INVALID_GL_OBJECT"},
    {-61, "CL_INVALID_BUFFER_SIZE"},
    {-62, "CL_INVALID_MIP_LEVEL"},
    {-63, "CL_INVALID_GLOBAL_WORK_SIZE"},
    {-64, "CL_INVALID_PROPERTY"},
    {-65, "CL_INVALID_IMAGE_DESCRIPTOR"},
    {-66, "CL_INVALID_COMPILER_OPTIONS"},
    {-67, "CL_INVALID_LINKER_OPTIONS"},
    {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
};

const char *opencl_code_name(cl_int code) {
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        if (codes[i].code == code) return codes[i].name;
    }
    return "a code this runner has no name for";
}

int opencl_failed(cl_int code, const char *call, const char *about, ...) {
    char subject[600];
    va_list arguments;
    va_start(arguments, about);
    vsnprintf(subject, sizeof subject, about, arguments);
    va_end(arguments);
    bool memory = code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY;
    return fail(memory ? STATUS_MEMORY : STATUS_OPENCL, "%s failed with %s (%d) for %s", call, opencl_code_name(code), code, subject);
}
