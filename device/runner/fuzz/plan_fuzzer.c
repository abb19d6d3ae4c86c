/* plan.txt from anywhere: parsed or refused, never more. */
#include "../plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Written down a second time: where an object begins and ends in what is allocated. */
static bool overlap(const struct plan *plan, uint32_t a, uint32_t b) {
    uint32_t objects[2] = {a, b};
    uint64_t start[2], end[2];
    for (int i = 0; i < 2; i++) {
        const struct plan_memory *memory = &plan->memories[objects[i]];
        bool part = memory->kind == MEMORY_PART;
        start[i] = part ? memory->offset : 0;
        end[i] = start[i] + memory->size_bytes;
        if (part) objects[i] = memory->buffer;
    }
    return objects[0] == objects[1] && (start[0] > start[1] ? start[0] : start[1]) < (end[0] < end[1] ? end[0] : end[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct plan plan;
    forget_failure();
    int status = plan_parse(&plan, (const char *)data, size);
    if ((status == STATUS_OK) != (failure_message()[0] == 0)) __builtin_trap(); /* every refusal says why */
    if (status == STATUS_OK) {
        uint64_t kernels = plan_kernels_bytes(&plan), weights = plan_weights_bytes(&plan);
        if (plan_check_ranges(&plan, kernels, weights) != STATUS_OK) __builtin_trap();
        if (plan_check_ranges(&plan, kernels - 1, weights) == STATUS_OK) __builtin_trap();
        /* Every part lies in a buffer, where a part may begin. */
        for (uint32_t i = 0; i < plan.memory_count; i++) {
            const struct plan_memory *part = &plan.memories[i];
            if (part->kind != MEMORY_PART) continue;
            if (plan.version < 2 || part->buffer >= i || plan.memories[part->buffer].kind != MEMORY_BUFFER) __builtin_trap();
            if (part->offset % PART_ALIGNMENT != 0 || part->size_bytes == 0) __builtin_trap();
            if (part->offset + part->size_bytes > plan.memories[part->buffer].size_bytes) __builtin_trap();
        }
        /* Whatever a launch refers to is there, and nothing twice under different names. */
        for (uint32_t i = 0; i < plan.launch_count; i++) {
            const struct plan_launch *launch = &plan.launches[i];
            if (launch->program >= plan.program_count) __builtin_trap();
            if (launch->first_argument + launch->argument_count > plan.argument_count) __builtin_trap();
            for (uint32_t a = 0; a < launch->argument_count; a++) {
                const struct plan_argument *argument = &plan.arguments[launch->first_argument + a];
                if (argument->kind != ARGUMENT_MEMORY) continue;
                if (argument->memory >= plan.memory_count) __builtin_trap();
                for (uint32_t b = 0; b < a; b++) {
                    const struct plan_argument *other = &plan.arguments[launch->first_argument + b];
                    if (other->kind != ARGUMENT_MEMORY || other->memory == argument->memory) continue;
                    if (overlap(&plan, argument->memory, other->memory)) __builtin_trap();
                }
            }
        }
    }
    plan_free(&plan);
    return 0;
}
