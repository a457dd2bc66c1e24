/* Threads that run one function together: each takes a range of the items, and all wait between dependent stages. */
#ifndef EDGE_VLA_THREADS
#define EDGE_VLA_THREADS

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define SPINS 20000 /* before a waiting thread yields its core */

typedef struct {
    _Atomic int32_t arrived, generation; /* zeros at first */
} Barrier;

typedef struct {
    Barrier *barrier;
    int64_t index, count;
} Thread;

/* This thread's items are range_begin .. range_end - 1. */
static inline int64_t range_begin(Thread thread, int64_t items) { return items * thread.index / thread.count; }
static inline int64_t range_end(Thread thread, int64_t items) { return items * (thread.index + 1) / thread.count; }

/* Returns when all threads have called it. */
static inline void wait_for_all(Thread thread) {
    if (thread.count == 1) return;
    int32_t generation = atomic_load(&thread.barrier->generation);
    if (atomic_fetch_add(&thread.barrier->arrived, 1) == thread.count - 1) {
        atomic_store(&thread.barrier->arrived, 0);
        atomic_fetch_add(&thread.barrier->generation, 1);
        return;
    }
    for (int64_t spins = 0; atomic_load(&thread.barrier->generation) == generation; spins++)
        if (spins > SPINS) sched_yield();
}

#endif
