#include "recording.h"

cl_int launch_enqueue(const struct plan *plan, const cl_kernel *kernels, uint32_t index, cl_command_queue queue, cl_event *event) {
    const struct plan_launch *launch = &plan->launches[index];
    return clEnqueueNDRangeKernel(queue, kernels[index], launch->dims, NULL, launch->global, launch->local_given ? launch->local : NULL,
                                  0, NULL, event);
}

/* One recording of the launches [first, end). */
static bool record_part(struct recording *recording, const struct plan *plan, const cl_kernel *kernels, uint32_t first, uint32_t end) {
    cl_int code = CL_SUCCESS;
    cl_recording_qcom part = clNewRecordingQCOM(recording->queue, &code);
    if (part == NULL || code != CL_SUCCESS) return false;
    recording->parts[recording->part_count++] = part;
    for (uint32_t i = first; code == CL_SUCCESS && i < end; i++) code = launch_enqueue(plan, kernels, i, recording->queue, NULL);
    cl_int ended = clEndRecordingQCOM(part); /* also after a failure: an open recording may not be released */
    return code == CL_SUCCESS && ended == CL_SUCCESS;
}

/* How many launches to record together; a driver that does not say how many it takes gets as many as others give it. */
static uint32_t part_size(const struct session *session) {
    cl_uint most = 0;
    cl_int code = clGetDeviceInfo(session->device.id, CL_DEVICE_RECORDABLE_QUEUE_MAX_SIZE_QCOM, sizeof most, &most, NULL);
    return code == CL_SUCCESS && most > 0 && most < RECORDED_TOGETHER ? most : RECORDED_TOGETHER;
}

void recording_make(struct recording *recording, const struct session *session, const struct plan *plan, const cl_kernel *kernels) {
    memset(recording, 0, sizeof *recording);
    if (!session->recording || plan->launch_count == 0) return;
    cl_int code = CL_SUCCESS;
    /* Drivers take this property by itself only, not beside profiling. */
    recording->queue = clCreateCommandQueue(session->context, session->device.id, CL_QUEUE_RECORDABLE_QCOM, &code);
    if (code != CL_SUCCESS) recording->queue = NULL;
    uint32_t size = part_size(session);
    recording->parts = calloc((plan->launch_count - 1) / size + 1, sizeof *recording->parts);
    bool recorded = recording->queue != NULL && recording->parts != NULL;
    for (uint32_t first = 0; recorded && first < plan->launch_count; first += size) {
        uint32_t left = plan->launch_count - first;
        recorded = record_part(recording, plan, kernels, first, first + (left < size ? left : size));
    }
    if (!recorded) recording_free(recording);
}

void recording_free(struct recording *recording) {
    for (uint32_t i = 0; i < recording->part_count; i++) clReleaseRecordingQCOM(recording->parts[i]);
    if (recording->queue != NULL) clReleaseCommandQueue(recording->queue);
    free(recording->parts);
    memset(recording, 0, sizeof *recording);
}

int recording_enqueue(const struct recording *recording, cl_command_queue queue) {
    for (uint32_t i = 0; i < recording->part_count; i++) {
        cl_int code = clEnqueueRecordingQCOM(queue, recording->parts[i], 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, NULL);
        if (code != CL_SUCCESS) {
            return opencl_failed(code, "clEnqueueRecordingQCOM", "recording %u: repeat with --recording off", i);
        }
    }
    return STATUS_OK;
}
