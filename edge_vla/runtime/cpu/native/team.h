/* Threads that walk through one computation side by side, and wait for each other between its steps. */
#ifndef EDGE_VLA_TEAM
#define EDGE_VLA_TEAM

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define PATIENCE 20000 /* looks before a waiting thread offers its processor to others */

typedef struct {
    _Atomic int32_t arrived, round;
} Team;

typedef struct {
    Team *team;
    int64_t member, members;
} Share;

static inline int64_t first_of(Share share, int64_t items) { return items * share.member / share.members; }
static inline int64_t end_of(Share share, int64_t items) { return items * (share.member + 1) / share.members; }

/* Returns when all members have come. */
static inline void meet(Share share) {
    if (share.members == 1) return;
    int32_t round = atomic_load(&share.team->round);
    if (atomic_fetch_add(&share.team->arrived, 1) == share.members - 1) {
        atomic_store(&share.team->arrived, 0);
        atomic_fetch_add(&share.team->round, 1);
        return;
    }
    for (int64_t looks = 0; atomic_load(&share.team->round) == round; looks++)
        if (looks > PATIENCE) sched_yield();
}

#endif
