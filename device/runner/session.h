/* The OpenCL devices of this machine, and a context on one of them. */
#ifndef STRUCTADMM_SESSION_H
#define STRUCTADMM_SESSION_H

#include "json.h"
#include "opencl_loader.h"

struct device {
    cl_platform_id platform;
    cl_device_id id;
    char index[16]; /* "PLATFORM.DEVICE" */
    char platform_name[256], platform_version[256];
    char name[256], vendor[256], driver[256], version[256];
    char *extensions;
    cl_bitfield type;
    cl_uint compute_units, clock_mhz, base_align_bits, image_support;
    size_t max_work_group, max_work_item[3];
    size_t image_max_width, image_max_height, image_max_layers, image_max_buffer;
    cl_ulong global_bytes, max_object_bytes, local_bytes, constant_bytes;
};

struct device_list {
    struct device *devices;
    uint32_t count;
};

struct session {
    struct device device;
    cl_context context;
    bool perf_hint, priority_hint, recording; /* Qualcomm's extensions in use: the device has them and the user wants them */
};

/* Which of Qualcomm's extensions may be used where a device has them. */
struct extras {
    bool perf_hint, priority_hint, recording;
};

/* All devices of all platforms. STATUS_NO_OPENCL when there is none. */
int devices_find(struct device_list *list);
void devices_free(struct device_list *list);

/* The device `wanted` names: an index such as "0.1", or part of its own, its vendor's or its platform's name.
 * NULL takes the first GPU, else the first device. */
int devices_choose(const struct device_list *list, const char *wanted, const struct device **chosen);

bool device_has(const struct device *device, const char *extension);
const char *device_type_name(const struct device *device);

/* Prints the device as the members of the JSON object that is open. */
void device_print(const struct device *device);

int session_open(struct session *session, const struct device *device, const struct extras *wanted);
int session_queue(const struct session *session, bool profiling, cl_command_queue *queue);

#endif
