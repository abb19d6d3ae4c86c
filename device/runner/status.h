/* How the runner fails: one line on stderr and an exit status that names the class of the error. */
#ifndef STRUCTADMM_STATUS_H
#define STRUCTADMM_STATUS_H

#include "platform.h"

/* The table in README.md, and device/errors.py, follow this list. */
enum status {
    STATUS_OK = 0,
    STATUS_USAGE = 2,         /* the command line is wrong */
    STATUS_FILE = 3,          /* a file is missing, unreadable, or cannot be written */
    STATUS_INTEGRITY = 4,     /* a file of the bundle has changed since it was written */
    STATUS_TRUNCATED = 5,     /* a file is shorter than it must be */
    STATUS_NEWER = 6,         /* the bundle is of a newer format than this runner reads */
    STATUS_MALFORMED = 7,     /* the bundle contradicts its format or itself */
    STATUS_INPUT = 8,         /* an input array has the wrong shape, dtype or form */
    STATUS_NO_OPENCL = 9,     /* no OpenCL library or no platform on this machine */
    STATUS_NO_DEVICE = 10,    /* --device matches no device, or more than one */
    STATUS_OPENCL = 11,       /* an OpenCL call failed */
    STATUS_CHECK = 12,        /* outputs differ from the expected ones */
    STATUS_MEMORY = 13,       /* out of memory, here or on the device */
    STATUS_DEVICE_LIMIT = 14, /* the bundle asks for more than the device can do */
};

/* Records what went wrong (expected, arrived, what to do) and returns `status`. The first failure stays the one that
 * is told: later calls return its status. */
int fail(enum status status, const char *format, ...) PRINTF_LIKE(2, 3);

/* The recorded line, without control characters; empty when nothing failed. */
const char *failure_message(void);
void forget_failure(void);

#endif
