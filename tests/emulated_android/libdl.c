/* Test double: Android's libdl.so by name; glibc's libc has the functions. */
int emulated_libdl_is_loaded = 1;
