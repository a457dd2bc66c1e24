/* Sums of many numbers in an order that no target changes: 16 partial sums, element i in the (i mod 16)th, then halves.
 */
#ifndef EDGE_VLA_SUMS
#define EDGE_VLA_SUMS

#include "scalar.h"

#define PARTIAL 16

static inline float add_halves(float *partial) {
    for (int half = PARTIAL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) partial[i] += partial[half + i];
    return partial[0];
}

/* The sum of x[i], or of its square. */
static inline float sum_of(const bf16 *x, int64_t count) {
    float partial[PARTIAL] = {0};
    int64_t i = 0;
    for (; i + PARTIAL <= count; i += PARTIAL)
        for (int j = 0; j < PARTIAL; j++) partial[j] += to_float(x[i + j]);
    for (int j = 0; i + j < count; j++) partial[j] += to_float(x[i + j]);
    return add_halves(partial);
}

/* The sum of (x[i] - mean) squared. */
static inline float sum_of_squares(const bf16 *x, float mean, int64_t count) {
    float partial[PARTIAL] = {0};
    int64_t i = 0;
    for (; i + PARTIAL <= count; i += PARTIAL)
        for (int j = 0; j < PARTIAL; j++) {
            float distance = to_float(x[i + j]) - mean;
            partial[j] = fused(distance, distance, partial[j]);
        }
    for (int j = 0; i + j < count; j++) {
        float distance = to_float(x[i + j]) - mean;
        partial[j] = fused(distance, distance, partial[j]);
    }
    return add_halves(partial);
}

/* exp(scores[i] - largest) -> out [count] in bf16, and the sum of what is rounded there. */
static inline float sum_of_exponentials(const float *scores, float largest, int64_t count, bf16 *out) {
    float partial[PARTIAL] = {0};
    int64_t i = 0;
    for (; i + PARTIAL <= count; i += PARTIAL)
        for (int j = 0; j < PARTIAL; j++) {
            float power = exponential(scores[i + j] - largest);
            partial[j] += power;
            out[i + j] = to_bf16(power);
        }
    for (int j = 0; i + j < count; j++) {
        float power = exponential(scores[i + j] - largest);
        partial[j] += power;
        out[i + j] = to_bf16(power);
    }
    return add_halves(partial);
}

#endif
