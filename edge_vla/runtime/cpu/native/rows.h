/* Rows of activations as integers, one scale a row: in 8 bits, or in 16 as two planes of 8, x = 256 high + low.
 *
 * In 16 bits a row rounds at 2^-16 of its largest value, far below what rounding the product to bf16 does.
 */
#ifndef EDGE_VLA_ROWS
#define EDGE_VLA_ROWS

#include <math.h>

#include "structs.h"

#define SPAN 32            /* inputs between two prefix sums of a row */
#define INT8_MAX_CODE 127  /* the code of a row's largest magnitude */
#define INT16_MAX_CODE 32639 /* 127 x 256 + 127: both planes hold it */
#define MAX_PLANES 2

static inline int64_t spans(int64_t k) { return (k + SPAN - 1) / SPAN; }

/* x [count], as codes up to `most` -> their planes and the sum of the codes. Without finite values codes are nothing. */
static inline int32_t quantise_span(const bf16 *x, int64_t count, float scale, float most, int8_t *low, int8_t *high) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        float real = to_float(x[i]) / scale;
        real = real < most ? real : most; /* NaN too: its row's scale is NaN */
        int32_t code = (int32_t)rintf(real > -most ? real : -most);
        low[i] = (int8_t)code;
        if (high) high[i] = (int8_t)((code - (int8_t)code) >> 8);
        sum += code;
    }
    return sum;
}

/* x [k] -> codes, prefix sums and scale of one row. If x is not finite, scale and outputs are NaN. */
static void quantise_row(const bf16 *x, int64_t k, const IntRows *to, int64_t row) {
    int8_t *codes = to->codes + row * to->pitch;
    int8_t *low = to->planes == 1 ? codes : codes + to->pitch / MAX_PLANES;
    int32_t *prefix_sum = to->prefix_sum + row, sum = 0;
    float most = to->planes == 1 ? INT8_MAX_CODE : INT16_MAX_CODE;
    uint16_t largest = 0; /* without the sign, bf16 values order as their bits do */
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < k; i++) {
        uint16_t size = x[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    float scale = largest < 0x7f80 ? to_float(largest) / most : NAN;
    scale = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
    for (int64_t begin = 0, span = 0; begin < k; begin += SPAN, span++) {
        int64_t count = k - begin < SPAN ? k - begin : SPAN;
        prefix_sum[span * to->prefix_pitch] = sum;
        if (to->planes == 1) sum += quantise_span(x + begin, count, scale, most, low + begin, 0);
        else sum += quantise_span(x + begin, count, scale, most, low + begin, codes + begin);
    }
    prefix_sum[spans(k) * to->prefix_pitch] = sum;
    to->scales[row] = scale;
}

#endif
