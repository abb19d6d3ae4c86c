/* Replay of a network's launches from recordings (cl_qcom_recordable_queues): an enqueue for many launches. */
#ifndef STRUCTADMM_RECORDING_H
#define STRUCTADMM_RECORDING_H

#include "plan.h"
#include "session.h"

/* Launches in one recording, where the driver takes so many: other engines stay with ten. */
enum { RECORDED_TOGETHER = 10 };

struct recording {
    cl_command_queue queue; /* that was recorded on; nothing runs on it */
    cl_recording_qcom *parts;
    uint32_t part_count;
};

/* Records all launches, or none: what the driver refuses is launched one by one, as on any other device. */
void recording_make(struct recording *recording, const struct session *session, const struct plan *plan, const cl_kernel *kernels);
void recording_free(struct recording *recording);

/* Enqueues all recorded launches in order. */
int recording_enqueue(const struct recording *recording, cl_command_queue queue);

/* Enqueues launch `index` of the plan on any queue. */
cl_int launch_enqueue(const struct plan *plan, const cl_kernel *kernels, uint32_t index, cl_command_queue queue, cl_event *event);

#endif
