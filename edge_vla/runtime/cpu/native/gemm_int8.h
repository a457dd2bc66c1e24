/* The GEMM of gemm.h with inputs quantised to int8 by rows: sums are integers, two times the products an instruction.
 *
 * VNNI multiplies unsigned by signed bytes. So weight codes are stored plus `ZERO_POINT(bits)`, and what this adds to
 * a sum, the zero point times the sum of the row's codes, is subtracted again.
 */
#ifndef EDGE_VLA_GEMM_INT8
#define EDGE_VLA_GEMM_INT8

#include <math.h>

#include "gemm.h"

#define INT8_TILE 6       /* rows at a time: their 24 accumulators fit the registers */
#define SPAN 32           /* inputs between two prefix sums of a row */
#define INT8_MAX_CODE 127 /* the code of a row's largest magnitude */

static inline int64_t spans(int64_t k) { return (k + SPAN - 1) / SPAN; }

/* x [k] -> int8 codes [k], prefix sums and scale of one row. If x is not finite, scale and outputs are NaN. */
static void quantise_row(const bf16 *x, int64_t k, const Int8Rows *to, int64_t row) {
    int8_t *codes = to->codes + row * to->pitch;
    int32_t *prefix_sum = to->prefix_sum + row * to->prefix_pitch, sum = 0;
    uint16_t largest = 0; /* without the sign, bf16 values order as their bits do */
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < k; i++) {
        uint16_t size = x[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    float scale = largest < 0x7f80 ? to_float(largest) / INT8_MAX_CODE : NAN;
    scale = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
    for (int64_t begin = 0, span = 0; begin < k; begin += SPAN, span++) {
        int64_t end = k - begin < SPAN ? k : begin + SPAN;
        prefix_sum[span] = sum;
        for (int64_t i = begin; i < end; i++) {
            float real = to_float(x[i]) / scale;
            real = real < INT8_MAX_CODE ? real : INT8_MAX_CODE; /* NaN too: its row's scale is NaN */
            codes[i] = (int8_t)rintf(real > -INT8_MAX_CODE ? real : -INT8_MAX_CODE);
            sum += codes[i];
        }
    }
    prefix_sum[spans(k)] = sum;
    to->scales[row] = scale;
}

/* sums[m, 64] += x[m, k] x panel[64, k] for k = 4 steps: float sums with a scale, int32 sums without. */
INLINE void int8_tile(const int rows, const uint8_t *panel, int64_t steps, const int8_t *x, int64_t pitch,
                      const int32_t *correction, const float *scale, void *sums) {
    IntAcc sum[INT8_TILE][PARTS];
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) sum[m][part] = zero_int_acc();
    for (int64_t k = 0; k < steps; k++) {
        Codes weights[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) weights[part] = load_codes(panel + (k * PARTS + part) * 2 * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++)
                sum[m][part] = dot_int8(sum[m][part], weights[part], x + m * pitch + STEP * k);
    }
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) {
            int at = m * BLOCK + 16 * part;
            if (scale) add_scaled_int_acc((float *)sums + at, sum[m][part], correction[m], scale + 16 * part);
            else add_int_acc((int32_t *)sums + at, sum[m][part]);
        }
}

/* Lines in 4 or 8 bits -> unsigned codes in bytes. */
INLINE void unpack_panel(const int bits, const uint8_t *lines, int64_t steps, uint8_t *panel) {
    for (int64_t k = 0; k < steps; k++)
        for (int part = 0; part < PARTS; part++) {
            __builtin_prefetch(lines + k * LINE(bits) + part * (LINE(bits) / PARTS) + PREFETCH);
            store_codes(panel + (k * PARTS + part) * 2 * LANES, unpack_codes(bits, lines + k * LINE(bits), part));
        }
}

/* `int8_tile` over any number of rows, from input `k` on. */
static void int8_tiles(const Int8Rows *x, int64_t k, int64_t steps, int64_t rows, int zero_point, const uint8_t *panel,
                       const float *scale, float *sums) {
    for (int64_t m = 0; m < rows; m += INT8_TILE) {
        int64_t count = rows - m < INT8_TILE ? rows - m : INT8_TILE;
        const int8_t *codes = x->codes + m * x->pitch + k;
        float *to = sums + m * BLOCK;
        int32_t correction[INT8_TILE];
        for (int64_t i = 0; i < count; i++) {
            const int32_t *sum = x->prefix_sum + (m + i) * x->prefix_pitch;
            correction[i] = zero_point * (sum[spans(k + STEP * steps)] - sum[k / SPAN]);
        }
        switch (count) {
            case 1: int8_tile(1, panel, steps, codes, x->pitch, correction, scale, to); break;
            case 2: int8_tile(2, panel, steps, codes, x->pitch, correction, scale, to); break;
            case 3: int8_tile(3, panel, steps, codes, x->pitch, correction, scale, to); break;
            case 4: int8_tile(4, panel, steps, codes, x->pitch, correction, scale, to); break;
            case 5: int8_tile(5, panel, steps, codes, x->pitch, correction, scale, to); break;
            default: int8_tile(6, panel, steps, codes, x->pitch, correction, scale, to);
        }
    }
}

/* scratch.sums[m, 64] = x[m, k] x one block of 64 outputs [64, k]. Of one group, sums stay integers until the end. */
static void int8_block(const Matrix *w, int64_t block, const Int8Rows *x, int64_t rows, Scratch scratch) {
    int one_group = w->group >= w->k, zero_point = ZERO_POINT(w->bits);
    int64_t piece = w->group < PIECE ? w->group : PIECE;
    float scale[BLOCK];
    memset(scratch.sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->k; k += piece) {
        int64_t steps = (w->k - k < piece ? w->k - k : piece) / STEP;
        const uint8_t *lines = w->codes + (block * w->k + k) / STEP * LINE(w->bits);
        const bf16 *scales = w->scales + (block * (w->k / w->group) + k / w->group) * BLOCK;
        for (int i = 0; i < BLOCK; i++) scale[i] = to_float(scales[i]);
        if (w->bits == 4) unpack_panel(4, lines, steps, scratch.panel);
        else unpack_panel(8, lines, steps, scratch.panel);
        int8_tiles(x, k, steps, rows, zero_point, scratch.panel, one_group ? 0 : scale, scratch.sums);
    }
    for (int64_t m = 0; m < rows; m++) {
        float x_scale = x->scales[m], *sums = scratch.sums + m * BLOCK;
        int32_t correction = zero_point * x->prefix_sum[m * x->prefix_pitch + spans(w->k)];
        for (int i = 0; i < BLOCK; i++) {
            int32_t sum;
            memcpy(&sum, sums + i, sizeof sum);
            sums[i] = one_group ? (float)(sum - correction) * x_scale * scale[i] : sums[i] * x_scale;
        }
    }
}

/* `gemm` of quantised rows. */
static void gemm_int8(const Matrix *w, const Int8Rows *x, int64_t rows, bf16 *out, int64_t out_pitch, Epilogue epilogue,
                      Scratch scratch, Thread thread) {
    int64_t blocks = w->n / BLOCK;
    for (int64_t block = range_begin(thread, blocks); block < range_end(thread, blocks); block++) {
        int64_t column = block * BLOCK;
        int8_block(w, block, x, rows, scratch);
        store_block(scratch.sums, rows, w->bias ? w->bias + column : 0, epilogue, 0, out + column, out_pitch);
    }
}

#endif
