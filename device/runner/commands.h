/* What the runner does with bundles once they are verified and a device is open. */
#ifndef STRUCTADMM_COMMANDS_H
#define STRUCTADMM_COMMANDS_H

#include "network.h"
#include "options.h"

int command_run(const struct options *options, const struct session *session, const struct bundle *bundle);
int command_check(const struct options *options, const struct session *session, const struct bundle *bundle);
int command_bench(const struct options *options, const struct session *session, const struct bundle *bundles);
int command_profile(const struct options *options, const struct session *session, const struct bundle *bundle);

/* What was loaded and built, as members of the JSON object that is open. */
void print_preparation(const struct options *options, const struct network *network);

#endif
