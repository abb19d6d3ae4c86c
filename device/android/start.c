/* Where an Android arm64 program begins, in place of the NDK's crtbegin_dynamic.o.
 *
 * The kernel enters the dynamic linker, which loads the libraries, runs their constructors and jumps to _start with the
 * stack as the kernel left it: argc, argv, envp, auxv. libc's __libc_init reads them, calls main and exits with what
 * main returns.
 */
typedef void (*structor)(void);

/* The program's own constructors and destructors: none. libc skips the first entry and stops at a null. */
static const structor none[2] = {(structor)-1, 0};

struct structors {
    const structor *preinit, *init, *fini;
};

int main(int count, char **words);
void __libc_init(void *stack, void (*on_exit)(void), int (*entry)(int, char **), const struct structors *structors);
__attribute__((noreturn, used)) void start_on_stack(void *stack);

/* No frame is above this one: unwinders stop at a null frame pointer and return address. */
__asm__(".text\n"
        ".globl _start\n"
        ".type _start, %function\n"
        "_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    b start_on_stack\n"
        ".size _start, . - _start\n");

void start_on_stack(void *stack) {
    static const struct structors structors = {none, none, none};
    __libc_init(stack, 0, main, &structors);
    __builtin_trap(); /* it does not return */
}
