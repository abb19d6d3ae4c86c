#include "session.h"

enum { MAX_PLATFORMS = 32, MAX_DEVICES = 64 };

/* A fact that a driver cannot tell stays zero or empty: `info` must show a half-broken driver, not die of it. */
static void ask(cl_device_id id, cl_uint what, void *value, size_t size) {
    if (clGetDeviceInfo(id, what, size, value, NULL) != CL_SUCCESS) memset(value, 0, size);
}

static void ask_text(cl_device_id id, cl_uint what, char text[256]) {
    if (clGetDeviceInfo(id, what, 256, text, NULL) != CL_SUCCESS) text[0] = 0;
    text[255] = 0;
}

static char *ask_extensions(cl_device_id id) {
    size_t size = 0;
    if (clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, 0, NULL, &size) != CL_SUCCESS || size > 1 << 20) size = 0;
    char *text = calloc(size + 1, 1);
    if (text != NULL && size > 0 && clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, size, text, NULL) != CL_SUCCESS) text[0] = 0;
    return text;
}

static int describe(struct device *device, cl_platform_id platform, cl_device_id id) {
    device->platform = platform;
    device->id = id;
    if (clGetPlatformInfo(platform, CL_PLATFORM_NAME, 255, device->platform_name, NULL) != CL_SUCCESS) device->platform_name[0] = 0;
    if (clGetPlatformInfo(platform, CL_PLATFORM_VERSION, 255, device->platform_version, NULL) != CL_SUCCESS) {
        device->platform_version[0] = 0;
    }
    ask_text(id, CL_DEVICE_NAME, device->name);
    ask_text(id, CL_DEVICE_VENDOR, device->vendor);
    ask_text(id, CL_DRIVER_VERSION, device->driver);
    ask_text(id, CL_DEVICE_VERSION, device->version);
    ask(id, CL_DEVICE_TYPE, &device->type, sizeof device->type);
    ask(id, CL_DEVICE_MAX_COMPUTE_UNITS, &device->compute_units, sizeof device->compute_units);
    ask(id, CL_DEVICE_MAX_CLOCK_FREQUENCY, &device->clock_mhz, sizeof device->clock_mhz);
    ask(id, CL_DEVICE_MEM_BASE_ADDR_ALIGN, &device->base_align_bits, sizeof device->base_align_bits);
    ask(id, CL_DEVICE_IMAGE_SUPPORT, &device->image_support, sizeof device->image_support);
    ask(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, &device->max_work_group, sizeof device->max_work_group);
    ask(id, CL_DEVICE_MAX_WORK_ITEM_SIZES, device->max_work_item, sizeof device->max_work_item);
    ask(id, CL_DEVICE_IMAGE2D_MAX_WIDTH, &device->image_max_width, sizeof device->image_max_width);
    ask(id, CL_DEVICE_IMAGE2D_MAX_HEIGHT, &device->image_max_height, sizeof device->image_max_height);
    ask(id, CL_DEVICE_IMAGE_MAX_ARRAY_SIZE, &device->image_max_layers, sizeof device->image_max_layers);
    ask(id, CL_DEVICE_IMAGE_MAX_BUFFER_SIZE, &device->image_max_buffer, sizeof device->image_max_buffer);
    ask(id, CL_DEVICE_GLOBAL_MEM_SIZE, &device->global_bytes, sizeof device->global_bytes);
    ask(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, &device->max_object_bytes, sizeof device->max_object_bytes);
    ask(id, CL_DEVICE_LOCAL_MEM_SIZE, &device->local_bytes, sizeof device->local_bytes);
    ask(id, CL_DEVICE_MAX_CONSTANT_BUFFER_SIZE, &device->constant_bytes, sizeof device->constant_bytes);
    device->extensions = ask_extensions(id);
    return device->extensions != NULL ? STATUS_OK : fail(STATUS_MEMORY, "out of memory for the list of devices");
}

static int add_platform(struct device_list *list, cl_platform_id platform, uint32_t platform_index) {
    cl_device_id ids[MAX_DEVICES];
    cl_uint count = 0;
    cl_int code = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, MAX_DEVICES, ids, &count);
    if (code == CL_DEVICE_NOT_FOUND) return STATUS_OK;
    if (code != CL_SUCCESS) return opencl_failed(code, "clGetDeviceIDs", "platform %u", platform_index);
    for (uint32_t i = 0; i < count && i < MAX_DEVICES && list->count < MAX_DEVICES; i++) {
        struct device *device = &list->devices[list->count++];
        snprintf(device->index, sizeof device->index, "%u.%u", platform_index, i);
        int status = describe(device, platform, ids[i]);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

int devices_find(struct device_list *list) {
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint count = 0;
    memset(list, 0, sizeof *list);
    cl_int code = clGetPlatformIDs(MAX_PLATFORMS, platforms, &count);
    if (code != CL_SUCCESS && code != CL_PLATFORM_NOT_FOUND_KHR) return opencl_failed(code, "clGetPlatformIDs", "this machine");
    if (code == CL_PLATFORM_NOT_FOUND_KHR) count = 0;
    list->devices = calloc(MAX_DEVICES, sizeof *list->devices);
    if (list->devices == NULL) return fail(STATUS_MEMORY, "out of memory for the list of devices");
    int status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < count && i < MAX_PLATFORMS; i++) status = add_platform(list, platforms[i], i);
    if (status == STATUS_OK && list->count == 0) {
        status = fail(STATUS_NO_OPENCL, "'%s' knows %u OpenCL platforms and no device: install an OpenCL driver (its .icd file)",
                      opencl_library(), count);
    }
    if (status != STATUS_OK) devices_free(list);
    return status;
}

void devices_free(struct device_list *list) {
    for (uint32_t i = 0; i < list->count; i++) free(list->devices[i].extensions);
    free(list->devices);
    memset(list, 0, sizeof *list);
}

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static bool contains(const char *text, const char *part) {
    for (; *text != 0; text++) {
        size_t i = 0;
        while (part[i] != 0 && lower(text[i]) == lower(part[i])) i++;
        if (part[i] == 0) return true;
    }
    return false;
}

static bool matches(const struct device *device, const char *wanted) {
    if (*wanted >= '0' && *wanted <= '9' && strchr(wanted, '.') != NULL) return strcmp(device->index, wanted) == 0;
    return contains(device->name, wanted) || contains(device->vendor, wanted) || contains(device->platform_name, wanted);
}

static int choose_first(const struct device_list *list, const struct device **chosen) {
    *chosen = &list->devices[0];
    for (uint32_t i = list->count; i-- > 0;) {
        if ((list->devices[i].type & CL_DEVICE_TYPE_GPU) != 0) *chosen = &list->devices[i];
    }
    return STATUS_OK;
}

int devices_choose(const struct device_list *list, const char *wanted, const struct device **chosen) {
    if (wanted == NULL) return choose_first(list, chosen);
    uint32_t count = 0;
    char names[600] = "";
    for (uint32_t i = 0; i < list->count; i++) {
        const struct device *device = &list->devices[i];
        size_t used = strlen(names);
        if (used < sizeof names) {
            snprintf(names + used, sizeof names - used, "%s%s %.60s (%.40s)", i == 0 ? "" : ", ", device->index, device->name,
                     device->platform_name);
        }
        if (!matches(device, wanted)) continue;
        *chosen = device;
        count += 1;
    }
    if (count == 1) return STATUS_OK;
    return fail(STATUS_NO_DEVICE, "--device '%.80s' matches %u devices, expected one; there are: %s", wanted, count, names);
}

bool device_has(const struct device *device, const char *extension) {
    size_t length = strlen(extension);
    for (const char *at = device->extensions; (at = strstr(at, extension)) != NULL; at += length) {
        bool starts = at == device->extensions || at[-1] == ' ';
        if (starts && (at[length] == 0 || at[length] == ' ')) return true;
    }
    return false;
}

const char *device_type_name(const struct device *device) {
    if ((device->type & CL_DEVICE_TYPE_GPU) != 0) return "gpu";
    if ((device->type & CL_DEVICE_TYPE_CPU) != 0) return "cpu";
    return (device->type & CL_DEVICE_TYPE_ACCELERATOR) != 0 ? "accelerator" : "other";
}

void device_print(const struct device *device) {
    json_string("index", device->index);
    json_string("platform", device->platform_name);
    json_string("platform_version", device->platform_version);
    json_string("name", device->name);
    json_string("vendor", device->vendor);
    json_string("driver", device->driver);
    json_string("version", device->version);
    json_string("type", device_type_name(device));
    json_uint("compute_units", device->compute_units);
    json_uint("clock_mhz", device->clock_mhz);
    json_uint("max_work_group", device->max_work_group);
    json_uint("base_align_bytes", device->base_align_bits / 8);
    json_uint("global_bytes", device->global_bytes);
    json_uint("max_object_bytes", device->max_object_bytes);
    json_uint("local_bytes", device->local_bytes);
    json_uint("constant_bytes", device->constant_bytes);
    json_bool("images", device->image_support != 0);
    json_uint("image_max_width", device->image_max_width);
    json_uint("image_max_height", device->image_max_height);
    json_uint("image_max_layers", device->image_max_layers);
    json_uint("image_max_buffer", device->image_max_buffer);
    json_bool("fp16", device_has(device, "cl_khr_fp16"));
    json_bool("perf_hint", device_has(device, "cl_qcom_perf_hint"));
    json_bool("priority_hint", device_has(device, "cl_qcom_priority_hint"));
    json_bool("recordable_queues", device_has(device, "cl_qcom_recordable_queues"));
    json_string("extensions", device->extensions);
}

int session_open(struct session *session, const struct device *device, const struct extras *wanted) {
    memset(session, 0, sizeof *session);
    session->device = *device;
    session->perf_hint = wanted->perf_hint && device_has(device, "cl_qcom_perf_hint");
    session->priority_hint = wanted->priority_hint && device_has(device, "cl_qcom_priority_hint");
    session->recording = wanted->recording && device_has(device, "cl_qcom_recordable_queues") && opencl_can_record();
    cl_context_properties properties[8] = {CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform};
    size_t used = 2;
    if (session->perf_hint) {
        properties[used++] = CL_CONTEXT_PERF_HINT_QCOM;
        properties[used++] = CL_PERF_HINT_HIGH_QCOM;
    }
    if (session->priority_hint) {
        properties[used++] = CL_CONTEXT_PRIORITY_HINT_QCOM;
        properties[used++] = CL_PRIORITY_HINT_HIGH_QCOM;
    }
    cl_int code;
    session->context = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    if (code == CL_SUCCESS) return STATUS_OK;
    return opencl_failed(code, "clCreateContext", "device %s (%s)", device->index, device->name);
}

int session_queue(const struct session *session, bool profiling, cl_command_queue *queue) {
    cl_int code;
    cl_bitfield properties = profiling ? CL_QUEUE_PROFILING_ENABLE : 0;
    *queue = clCreateCommandQueue(session->context, session->device.id, properties, &code);
    if (code == CL_SUCCESS) return STATUS_OK;
    return opencl_failed(code, "clCreateCommandQueue", "device %s (%s)", session->device.index, session->device.name);
}
