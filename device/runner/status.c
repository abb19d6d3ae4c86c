#include "status.h"

static char recorded[1024];
static enum status recorded_status;

int fail(enum status status, const char *format, ...) {
    if (recorded[0] != 0) return recorded_status;
    recorded_status = status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(recorded, sizeof recorded, format, arguments);
    va_end(arguments);
    /* Names and logs come from files and drivers: nothing of theirs may start a second line or steer a terminal. */
    for (char *c = recorded; *c != 0; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    }
    return status;
}

const char *failure_message(void) { return recorded; }

void forget_failure(void) { recorded[0] = 0; }
