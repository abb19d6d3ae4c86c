/* Finding the machine's OpenCL at run time. */
#ifndef STRUCTADMM_OPENCL_LOADER_H
#define STRUCTADMM_OPENCL_LOADER_H

#include "cl_api.h"
#include "status.h"

/* Loads OpenCL from STRUCTADMM_OPENCL_LIBRARY if that is set, else from the usual places. */
int opencl_load(void);

/* Whether the library has the functions of cl_qcom_recordable_queues. */
bool opencl_can_record(void);

const char *opencl_library(void); /* the name it was loaded by */

/* Records that `call` returned `code` for the thing described, and returns the status for it. */
int opencl_failed(cl_int code, const char *call, const char *about, ...) PRINTF_LIKE(3, 4);

const char *opencl_code_name(cl_int code);

#endif
