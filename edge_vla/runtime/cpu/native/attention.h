/* Attention of one head. Keys and values are kept as weights of two products: of queries, then of chances. */
#ifndef EDGE_VLA_ATTENTION
#define EDGE_VLA_ATTENTION

#include <math.h>

#include "product.h"

typedef struct {
    uint8_t *keys;        /* 16-bit lines: (slots / 64, width / 4, line), a slot being an output */
    uint8_t *values;      /* 16-bit lines: (width / 64, slots / 4, line), a slot being an input */
    int64_t slots, width; /* slots in 64s, width in fours */
} Memory;

typedef struct {
    float *scores; /* (TILE, slots) */
    bf16 *chances; /* (TILE, slots) */
} Blackboard;

static inline int64_t up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

/* Where 16-bit lines hold the weight of an output for an input. */
static inline bf16 *place(uint8_t *lines, int64_t inner, int64_t output, int64_t input) {
    int64_t line = output / BLOCK * (inner / STEP) + input / STEP;
    int64_t lane = output % 16 * 2 + input % 2;
    return (bf16 *)(lines + line * LINE(16)) + output % BLOCK / 16 * 2 * LANES + input % STEP / 2 * LANES + lane;
}

static void remember(const Memory *memory, int64_t slot, const bf16 *key, const bf16 *value) {
    bf16 *to = place(memory->keys, memory->width, slot, 0);
    for (int64_t d = 0; d < memory->width; d += STEP, to += LINE(16) / 2) {
        memcpy(to, key + d, 2 * sizeof *key);
        memcpy(to + LANES, key + d + 2, 2 * sizeof *key);
    }
    for (int64_t d = 0; d < memory->width; d += 16) {
        int64_t count = memory->width - d < 16 ? memory->width - d : 16;
        to = place(memory->values, memory->slots, d, slot);
        for (int64_t r = 0; r < count; r++) to[2 * r] = value[d + r];
    }
}

/* Scores -> unnormalised chances; returns one over their sum. */
static float softmax(const float *scores, int64_t seen, int64_t slots, bf16 *chances) {
    float most = scores[0], sum = 0.0f;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < seen; i++) most = scores[i] > most ? scores[i] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < seen; i++) {
        float chance = exponential(scores[i] - most);
        sum += chance;
        chances[i] = narrow(chance);
    }
    for (int64_t i = seen; i < slots; i++) chances[i] = 0;
    return 1.0f / sum;
}

/* Row m of `rows` sees the first `seen + m * grows` slots. */
static void attend(const Memory *memory, const bf16 *query, int64_t pitch, int64_t rows, int64_t seen, int64_t grows,
                   Blackboard board, bf16 *out, int64_t out_pitch) {
    int64_t slots = memory->slots, width = memory->width;
    float root[BLOCK];
    for (int i = 0; i < BLOCK; i++) root[i] = 1.0f / sqrtf((float)width);
    for (int64_t m = 0; m < rows; m += TILE) {
        int64_t count = rows - m < TILE ? rows - m : TILE, reach = up(seen + (m + count - 1) * grows, STEP);
        float scale[TILE];
        memset(board.scores, 0, (size_t)(TILE * slots) * sizeof(float));
        for (int64_t slot = 0; slot < reach; slot += BLOCK)
            tiles(16, memory->keys + slot * width * sizeof(bf16), width / STEP, query + m * pitch, pitch, count, root,
                  board.scores + slot, slots);
        for (int64_t i = 0; i < count; i++)
            scale[i] = softmax(board.scores + i * slots, seen + (m + i) * grows, reach, board.chances + i * slots);
        for (int64_t d = 0; d < width; d += BLOCK) {
            float sums[TILE * BLOCK] = {0};
            tiles(16, memory->values + d * slots * sizeof(bf16), reach / STEP, board.chances, slots, count, ones, sums,
                  BLOCK);
            for (int64_t i = 0; i < count; i++)
                for (int64_t at = 0; at < BLOCK && d + at < width; at++)
                    out[(m + i) * out_pitch + d + at] = narrow(sums[i * BLOCK + at] * scale[i]);
        }
    }
}

#endif
