/* SHA256SUMS from anywhere. */
#include "../bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct bundle bundle;
    bundle.file_count = 0;
    forget_failure();
    int status = sums_parse(&bundle, (const char *)data, size);
    if ((status == STATUS_OK) != (failure_message()[0] == 0)) __builtin_trap();
    for (uint32_t i = 0; i < bundle.file_count; i++) {
        if (!is_plain_file_name(bundle.files[i].name) || strlen(bundle.files[i].digest_hex) != 64) __builtin_trap();
    }
    return 0;
}
