/* The part of the OpenCL 1.2 interface that the runner uses, declared here so that no OpenCL headers are needed.
 * Names and values are those of the Khronos specification. */
#ifndef STRUCTADMM_CL_API_H
#define STRUCTADMM_CL_API_H

#include "platform.h"

typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_ulong;
typedef cl_uint cl_bool;
typedef cl_ulong cl_bitfield;
typedef intptr_t cl_context_properties;

typedef struct _cl_platform_id *cl_platform_id;
typedef struct _cl_device_id *cl_device_id;
typedef struct _cl_context *cl_context;
typedef struct _cl_command_queue *cl_command_queue;
typedef struct _cl_mem *cl_mem;
typedef struct _cl_program *cl_program;
typedef struct _cl_kernel *cl_kernel;
typedef struct _cl_event *cl_event;
typedef struct _cl_recording_qcom *cl_recording_qcom;

typedef struct {
    cl_uint image_channel_order;
    cl_uint image_channel_data_type;
} cl_image_format;

typedef struct {
    cl_uint image_type;
    size_t image_width, image_height, image_depth, image_array_size;
    size_t image_row_pitch, image_slice_pitch;
    cl_uint num_mip_levels, num_samples;
    cl_mem buffer;
} cl_image_desc;

typedef struct {
    size_t origin, size;
} cl_buffer_region;

enum {
    CL_SUCCESS = 0,
    CL_DEVICE_NOT_FOUND = -1,
    CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
    CL_OUT_OF_HOST_MEMORY = -6,
    CL_PLATFORM_NOT_FOUND_KHR = -1001,

    CL_TRUE = 1,

    CL_PLATFORM_VERSION = 0x0901,
    CL_PLATFORM_NAME = 0x0902,

    CL_DEVICE_TYPE = 0x1000,
    CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002,
    CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
    CL_DEVICE_MAX_WORK_ITEM_SIZES = 0x1005,
    CL_DEVICE_MAX_CLOCK_FREQUENCY = 0x100C,
    CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010,
    CL_DEVICE_IMAGE2D_MAX_WIDTH = 0x1011,
    CL_DEVICE_IMAGE2D_MAX_HEIGHT = 0x1012,
    CL_DEVICE_IMAGE_SUPPORT = 0x1016,
    CL_DEVICE_MEM_BASE_ADDR_ALIGN = 0x1019,
    CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
    CL_DEVICE_MAX_CONSTANT_BUFFER_SIZE = 0x1020,
    CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
    CL_DEVICE_NAME = 0x102B,
    CL_DEVICE_VENDOR = 0x102C,
    CL_DRIVER_VERSION = 0x102D,
    CL_DEVICE_VERSION = 0x102F,
    CL_DEVICE_EXTENSIONS = 0x1030,
    CL_DEVICE_IMAGE_MAX_BUFFER_SIZE = 0x1040,
    CL_DEVICE_IMAGE_MAX_ARRAY_SIZE = 0x1041,

    CL_DEVICE_TYPE_CPU = 1 << 1,
    CL_DEVICE_TYPE_GPU = 1 << 2,
    CL_DEVICE_TYPE_ACCELERATOR = 1 << 3,

    CL_CONTEXT_PLATFORM = 0x1084,
    CL_CONTEXT_PERF_HINT_QCOM = 0x40C2, /* cl_qcom_perf_hint */
    CL_PERF_HINT_HIGH_QCOM = 0x40C3,
    CL_CONTEXT_PRIORITY_HINT_QCOM = 0x40C9, /* cl_qcom_priority_hint */
    CL_PRIORITY_HINT_HIGH_QCOM = 0x40CA,

    CL_QUEUE_PROFILING_ENABLE = 1 << 1,
    CL_QUEUE_RECORDABLE_QCOM = 1 << 30, /* cl_qcom_recordable_queues */
    CL_DEVICE_RECORDABLE_QUEUE_MAX_SIZE_QCOM = 0x41DE,

    CL_MEM_READ_WRITE = 1 << 0,
    CL_MEM_READ_ONLY = 1 << 2,
    CL_MEM_COPY_HOST_PTR = 1 << 5,
    CL_BUFFER_CREATE_TYPE_REGION = 0x1220,
    CL_MEM_OBJECT_IMAGE2D = 0x10F1,
    CL_MEM_OBJECT_IMAGE2D_ARRAY = 0x10F3,
    CL_MEM_OBJECT_IMAGE1D_BUFFER = 0x10F6,
    CL_RGBA = 0x10B5,
    CL_HALF_FLOAT = 0x10DD,
    CL_FLOAT = 0x10DE,

    CL_PROGRAM_BINARY_SIZES = 0x1165,
    CL_PROGRAM_BINARIES = 0x1166,
    CL_PROGRAM_BUILD_LOG = 0x1183,
    CL_KERNEL_NUM_ARGS = 0x1191,
    CL_KERNEL_WORK_GROUP_SIZE = 0x11B0,

    CL_PROFILING_COMMAND_START = 0x1282,
    CL_PROFILING_COMMAND_END = 0x1283,
};
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFFu

typedef void (*cl_context_callback)(const char *, const void *, size_t, void *);
typedef void (*cl_program_callback)(cl_program, void *);

/* X(return type, name, parameters) for every function the runner calls. */
#define CL_FUNCTIONS(X)                                                                                             \
    X(cl_int, clGetPlatformIDs, (cl_uint, cl_platform_id *, cl_uint *))                                             \
    X(cl_int, clGetPlatformInfo, (cl_platform_id, cl_uint, size_t, void *, size_t *))                               \
    X(cl_int, clGetDeviceIDs, (cl_platform_id, cl_bitfield, cl_uint, cl_device_id *, cl_uint *))                    \
    X(cl_int, clGetDeviceInfo, (cl_device_id, cl_uint, size_t, void *, size_t *))                                   \
    X(cl_context, clCreateContext,                                                                                  \
      (const cl_context_properties *, cl_uint, const cl_device_id *, cl_context_callback, void *, cl_int *))        \
    X(cl_int, clReleaseContext, (cl_context))                                                                       \
    X(cl_command_queue, clCreateCommandQueue, (cl_context, cl_device_id, cl_bitfield, cl_int *))                    \
    X(cl_int, clReleaseCommandQueue, (cl_command_queue))                                                            \
    X(cl_mem, clCreateBuffer, (cl_context, cl_bitfield, size_t, void *, cl_int *))                                  \
    X(cl_mem, clCreateSubBuffer, (cl_mem, cl_bitfield, cl_uint, const void *, cl_int *))                            \
    X(cl_mem, clCreateImage,                                                                                        \
      (cl_context, cl_bitfield, const cl_image_format *, const cl_image_desc *, void *, cl_int *))                  \
    X(cl_int, clReleaseMemObject, (cl_mem))                                                                         \
    X(cl_program, clCreateProgramWithSource, (cl_context, cl_uint, const char **, const size_t *, cl_int *))        \
    X(cl_program, clCreateProgramWithBinary,                                                                        \
      (cl_context, cl_uint, const cl_device_id *, const size_t *, const unsigned char **, cl_int *, cl_int *))      \
    X(cl_int, clBuildProgram, (cl_program, cl_uint, const cl_device_id *, const char *, cl_program_callback, void *)) \
    X(cl_int, clGetProgramInfo, (cl_program, cl_uint, size_t, void *, size_t *))                                    \
    X(cl_int, clGetProgramBuildInfo, (cl_program, cl_device_id, cl_uint, size_t, void *, size_t *))                 \
    X(cl_int, clReleaseProgram, (cl_program))                                                                       \
    X(cl_kernel, clCreateKernel, (cl_program, const char *, cl_int *))                                              \
    X(cl_int, clGetKernelInfo, (cl_kernel, cl_uint, size_t, void *, size_t *))                                      \
    X(cl_int, clGetKernelWorkGroupInfo, (cl_kernel, cl_device_id, cl_uint, size_t, void *, size_t *))               \
    X(cl_int, clSetKernelArg, (cl_kernel, cl_uint, size_t, const void *))                                           \
    X(cl_int, clReleaseKernel, (cl_kernel))                                                                         \
    X(cl_int, clEnqueueWriteBuffer,                                                                                 \
      (cl_command_queue, cl_mem, cl_bool, size_t, size_t, const void *, cl_uint, const cl_event *, cl_event *))     \
    X(cl_int, clEnqueueReadBuffer,                                                                                  \
      (cl_command_queue, cl_mem, cl_bool, size_t, size_t, void *, cl_uint, const cl_event *, cl_event *))           \
    X(cl_int, clEnqueueFillBuffer,                                                                                  \
      (cl_command_queue, cl_mem, const void *, size_t, size_t, size_t, cl_uint, const cl_event *, cl_event *))      \
    X(cl_int, clEnqueueFillImage,                                                                                   \
      (cl_command_queue, cl_mem, const void *, const size_t *, const size_t *, cl_uint, const cl_event *, cl_event *)) \
    X(cl_int, clEnqueueNDRangeKernel,                                                                               \
      (cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint,               \
       const cl_event *, cl_event *))                                                                               \
    X(cl_int, clFinish, (cl_command_queue))                                                                         \
    X(cl_int, clGetEventProfilingInfo, (cl_event, cl_uint, size_t, void *, size_t *))                               \
    X(cl_int, clReleaseEvent, (cl_event))

/* Those of cl_qcom_recordable_queues: NULL where the library has them not. The four pairs of a number and an array
 * replace arguments, offsets, global and local sizes of recorded launches; the runner replaces none. */
#define CL_RECORDING_FUNCTIONS(X)                                                                                    \
    X(cl_recording_qcom, clNewRecordingQCOM, (cl_command_queue, cl_int *))                                           \
    X(cl_int, clEndRecordingQCOM, (cl_recording_qcom))                                                               \
    X(cl_int, clReleaseRecordingQCOM, (cl_recording_qcom))                                                           \
    X(cl_int, clEnqueueRecordingQCOM,                                                                                \
      (cl_command_queue, cl_recording_qcom, size_t, const void *, size_t, const void *, size_t, const void *, size_t, \
       const void *, cl_uint, const cl_event *, cl_event *))

#define CL_DECLARE(result, name, parameters) extern result(*name) parameters;
CL_FUNCTIONS(CL_DECLARE)
CL_RECORDING_FUNCTIONS(CL_DECLARE)
#undef CL_DECLARE

#endif
