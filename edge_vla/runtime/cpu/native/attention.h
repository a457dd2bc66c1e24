/* Attention of one head. Keys and values are stored as the weights of two GEMMs: of queries, then of probabilities. */
#ifndef EDGE_VLA_ATTENTION
#define EDGE_VLA_ATTENTION

#include <math.h>

#include "gemm.h"
#include "sums.h"

typedef struct {
    uint8_t *keys;        /* bf16 lines [slots / 64, width / 4, line]: a slot is an output */
    uint8_t *values;      /* bf16 lines [width / 64, slots / 4, line]: a slot is an input */
    int64_t slots, width; /* multiples of 64 and of 4 */
} HeadCache;

typedef struct {
    float *scores; /* [TILE, slots] */
    bf16 *probs;   /* [TILE, slots] */
} AttentionScratch;

static inline int64_t round_up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

/* The address of weight [output, input] in bf16 lines of so many inputs. */
static inline bf16 *lane_of(uint8_t *lines, int64_t inputs, int64_t output, int64_t input) {
    int64_t line = output / BLOCK * (inputs / STEP) + input / STEP;
    int64_t lane = output % 16 * 2 + input % 2;
    return (bf16 *)(lines + line * LINE(16)) + output % BLOCK / 16 * 2 * LANES + input % STEP / 2 * LANES + lane;
}

/* key [width], value [width] -> one slot of the cache. */
static void append_kv(const HeadCache *cache, int64_t slot, const bf16 *key, const bf16 *value) {
    bf16 *to = lane_of(cache->keys, cache->width, slot, 0);
    for (int64_t d = 0; d < cache->width; d += STEP, to += LINE(16) / 2) {
        memcpy(to, key + d, 2 * sizeof *key);
        memcpy(to + LANES, key + d + 2, 2 * sizeof *key);
    }
    for (int64_t d = 0; d < cache->width; d += 16) {
        int64_t count = cache->width - d < 16 ? cache->width - d : 16;
        to = lane_of(cache->values, cache->slots, d, slot);
        for (int64_t r = 0; r < count; r++) to[2 * r] = value[d + r];
    }
}

/* The first `visible` of scores [slots] -> exp(scores - largest), the rest 0; returns one over the sum. */
static float softmax(const float *scores, int64_t visible, int64_t slots, bf16 *probs) {
    float largest = scores[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < visible; i++) largest = scores[i] > largest ? scores[i] : largest;
    float sum = sum_of_exponentials(scores, largest, visible, probs);
    for (int64_t i = visible; i < slots; i++) probs[i] = 0;
    return 1.0f / sum;
}

/* query [rows, width] -> out [rows, width]. Row m sees `visible` slots, and m more if `causal` is 1. */
static void attend(const HeadCache *cache, const bf16 *query, int64_t pitch, int64_t rows, int64_t visible,
                   int64_t causal, AttentionScratch scratch, bf16 *out, int64_t out_pitch) {
    int64_t slots = cache->slots, width = cache->width;
    float root[BLOCK]; /* 1 / sqrt(width) */
    for (int i = 0; i < BLOCK; i++) root[i] = 1.0f / sqrtf((float)width);
    for (int64_t m = 0; m < rows; m += TILE) {
        int64_t count = rows - m < TILE ? rows - m : TILE, end = round_up(visible + (m + count - 1) * causal, STEP);
        float scale[TILE];
        memset(scratch.scores, 0, (size_t)(TILE * slots) * sizeof(float));
        for (int64_t slot = 0; slot < end; slot += BLOCK)
            bf16_product(cache->keys + slot * width * sizeof(bf16), width, query + m * pitch, pitch, count, root,
                         scratch.scores + slot, slots, 0);
        for (int64_t i = 0; i < count; i++)
            scale[i] = softmax(scratch.scores + i * slots, visible + (m + i) * causal, end, scratch.probs + i * slots);
        for (int64_t d = 0; d < width; d += BLOCK) {
            float sums[TILE * BLOCK] = {0};
            bf16_product(cache->values + d * slots * sizeof(bf16), end, scratch.probs, slots, count, ones, sums, BLOCK,
                         0);
            for (int64_t i = 0; i < count; i++)
                for (int64_t at = 0; at < BLOCK && d + at < width; at++)
                    out[(m + i) * out_pitch + d + at] = to_bf16(sums[i * BLOCK + at] * scale[i]);
        }
    }
}

#endif
