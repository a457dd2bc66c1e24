/* The product of rows in bf16 with lines of pairs in bf16, by instructions that multiply pairs of bf16. */
#ifndef EDGE_VLA_GEMM_BF16
#define EDGE_VLA_GEMM_BF16

#include "lanes.h"

#define TILE 3 /* rows at a time: their 24 accumulators fit the registers */

/* sums[m, 64] += scale[64] (x[m, k] x lines[64, k]) for k = 4 steps and m <= TILE rows. */
INLINE void gemm_tile(const int rows, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch,
                      const float *scale, float *sums, int64_t sums_pitch) {
    Acc even[TILE][PARTS], odd[TILE][PARTS];
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) even[m][part] = odd[m][part] = zero_acc();
    for (int64_t k = 0; k < steps; k++) {
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            const uint8_t *from = lines + k * LINE(16) + part * (LINE(16) / PARTS);
            Lanes first = load_lanes(from), second = load_lanes(from + 2 * LANES);
#pragma GCC unroll 3
            for (int m = 0; m < rows; m++) {
                even[m][part] = dot_bf16(even[m][part], first, x + m * pitch + STEP * k);
                odd[m][part] = dot_bf16(odd[m][part], second, x + m * pitch + STEP * k + 2);
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++)
            add_scaled_acc(sums + m * sums_pitch + 16 * part, even[m][part], odd[m][part], scale + 16 * part);
}

/* sums[m, 64] += scale[64] (x[m, k] x lines of pairs of 64 outputs [64, k]). */
static void bf16_product(const uint8_t *lines, int64_t k, const bf16 *x, int64_t pitch, int64_t rows,
                         const float *scale, float *sums, int64_t sums_pitch, uint8_t *panel) {
    int64_t m = 0, steps = k / STEP;
    (void)panel;
    for (; m + TILE <= rows; m += TILE)
        gemm_tile(TILE, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 2) gemm_tile(2, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 1) gemm_tile(1, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
}

/* sums[m, 64] = x[m, k] x one block of 64 outputs [64, k]. */
static void gemm_block(const Matrix *w, int64_t block, const bf16 *x, int64_t pitch, int64_t rows, float *sums,
                       uint8_t *panel) {
    memset(sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->k; k += PIECE) {
        int64_t count = w->k - k < PIECE ? w->k - k : PIECE;
        bf16_product(w->codes + (block * w->k + k) / STEP * LINE(16), count, x + k, pitch, rows, ones, sums, BLOCK,
                     panel);
    }
}

#endif
