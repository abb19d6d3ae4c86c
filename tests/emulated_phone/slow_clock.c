/* Preloaded into the phone's programs: their monotonic clock runs faster than this computer's while the phone is
 * throttled, so the same work takes longer by it. Nothing is really slowed down. The file that EMULATED_CLOCK names
 * says how fast it runs now. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Written by `thermal.py`; the sequence is odd while it is being changed. */
struct clock_state {
  _Atomic uint32_t sequence;
  uint32_t unused;
  int64_t host_ns;
  int64_t phone_ns;
  double rate;
};

static const struct clock_state *state;

__attribute__((constructor)) static void open_state(void) {
  const char *path = getenv("EMULATED_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *state, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) state = mapped;
}

static int64_t to_phone(int64_t host_ns) {
  for (;;) {
    uint32_t before = atomic_load_explicit(&state->sequence, memory_order_acquire);
    int64_t phone_ns = state->phone_ns + (int64_t)((double)(host_ns - state->host_ns) * state->rate);
    atomic_thread_fence(memory_order_acquire);
    if (before % 2 == 0 && before == atomic_load_explicit(&state->sequence, memory_order_relaxed)) return phone_ns;
  }
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int status = (int)syscall(SYS_clock_gettime, clock, time);
  if (status == 0 && state && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_RAW)) {
    int64_t phone_ns = to_phone((int64_t)time->tv_sec * 1000000000 + time->tv_nsec);
    time->tv_sec = phone_ns / 1000000000;
    time->tv_nsec = phone_ns % 1000000000;
  }
  return status;
}
