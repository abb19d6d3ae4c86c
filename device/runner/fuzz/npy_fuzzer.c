/* .npy files from anywhere. */
#include "../npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct npy array;
    double sum = 0;
    forget_failure();
    int status = npy_parse(&array, data, size, "fuzz.npy", STATUS_INPUT);
    if ((status == STATUS_OK) != (failure_message()[0] == 0)) __builtin_trap();
    if (status != STATUS_OK) return 0;
    /* All of the data is inside the input: the sanitizer watches the reads. */
    for (uint64_t i = 0; i < array.size_bytes / dtype_size(array.dtype); i++) sum += dtype_load(array.dtype, array.data, i);
    char shape[64];
    format_shape(array.dims, array.rank, shape, sizeof shape);
    return sum == 1e300 ? -1 : 0; /* uses the sum, so that the reads stay */
}
