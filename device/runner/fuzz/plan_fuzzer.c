/* plan.txt from anywhere: parsed or refused, never more. */
#include "../plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct plan plan;
    forget_failure();
    int status = plan_parse(&plan, (const char *)data, size);
    if ((status == STATUS_OK) != (failure_message()[0] == 0)) __builtin_trap(); /* every refusal says why */
    if (status == STATUS_OK) {
        uint64_t kernels = plan_kernels_bytes(&plan), weights = plan_weights_bytes(&plan);
        if (plan_check_ranges(&plan, kernels, weights) != STATUS_OK) __builtin_trap();
        if (plan_check_ranges(&plan, kernels - 1, weights) == STATUS_OK) __builtin_trap();
        /* Whatever a launch refers to is there. */
        for (uint32_t i = 0; i < plan.launch_count; i++) {
            const struct plan_launch *launch = &plan.launches[i];
            if (launch->program >= plan.program_count) __builtin_trap();
            if (launch->first_argument + launch->argument_count > plan.argument_count) __builtin_trap();
            for (uint32_t a = 0; a < launch->argument_count; a++) {
                const struct plan_argument *argument = &plan.arguments[launch->first_argument + a];
                if (argument->kind == ARGUMENT_MEMORY && argument->memory >= plan.memory_count) __builtin_trap();
            }
        }
    }
    plan_free(&plan);
    return 0;
}
