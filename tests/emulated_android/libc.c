/* Test double: the part of Android's libc.so that glibc has no like of, on top of glibc for aarch64.
 *
 * It reads what a program's start-up code hands over as bionic does (libc_init_dynamic.cpp, libc_init_common.cpp) and
 * stops with a line of its own where bionic would go astray.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef void (*structor)(void);

struct structors {
    structor *preinit, *init, *fini;
};

static struct structors given;

static void broken(const char *what) {
    dprintf(2, "emulated libc: start-up code passes %s\n", what);
    abort();
}

static void check_list(structor *list, const char *what) {
    if (list == NULL || list[0] != (structor)-1 || list[1] != NULL) broken(what);
}

static void run_destructors(void) { check_list(given.fini, "another list of destructors at exit than at start"); }

int *__errno(void) { return &errno; }

void __libc_init(void *stack, void (*on_exit_unused)(void), int (*entry)(int, char **, char **), const struct structors *structors) {
    (void)on_exit_unused;
    if (stack == NULL || (uintptr_t)stack % 16 != 0) broken("a stack pointer that is null or not aligned to 16 bytes");
    long count = *(long *)stack;
    char **words = (char **)stack + 1;
    if (count < 1 || words[count] != NULL) broken("a stack that does not begin with argc and argv");
    given = *structors;
    check_list(given.preinit, "a wrong list of early constructors");
    check_list(given.init, "a wrong list of constructors");
    check_list(given.fini, "a wrong list of destructors");
    atexit(run_destructors);
    exit(entry((int)count, words, words + count + 1));
}
