#include "dtype.h"

static const char *const names[] = {"float32", "float16", "int32"};

size_t dtype_size(enum dtype dtype) { return dtype == DTYPE_FLOAT16 ? 2 : 4; }

const char *dtype_name(enum dtype dtype) { return names[dtype]; }

bool dtype_from_name(const char *name, enum dtype *dtype) {
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *dtype = (enum dtype)i;
        return true;
    }
    return false;
}

static double half_to_double(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    double value = bits & 1023;
    if (exponent == 31) {
        value = value == 0 ? __builtin_inf() : __builtin_nan("");
    } else if (exponent == 0) {
        value /= 16777216.0; /* subnormal: 2^-24 a step */
    } else {
        value = (value + 1024) / 33554432.0 * (double)(1u << exponent);
    }
    return bits & 0x8000 ? -value : value;
}

double dtype_load(enum dtype dtype, const uint8_t *data, size_t index) {
    const uint8_t *element = data + index * dtype_size(dtype);
    if (dtype == DTYPE_FLOAT32) {
        float value;
        memcpy(&value, element, sizeof value);
        return value;
    }
    if (dtype == DTYPE_INT32) {
        int32_t value;
        memcpy(&value, element, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, element, sizeof bits);
    return half_to_double(bits);
}

void format_shape(const uint64_t *dims, uint32_t rank, char *text, size_t size) {
    size_t used = 0;
    for (uint32_t i = 0; i < rank && used < size; i++) {
        int wrote = snprintf(text + used, size - used, "%s%llu", i == 0 ? "[" : ", ", (unsigned long long)dims[i]);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
    if (used < size) snprintf(text + used, size - used, rank == 0 ? "[]" : "]");
}
