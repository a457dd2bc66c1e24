/* The product of rows in bf16 with lines of pairs, by instructions that multiply pairs of bf16. */
#ifndef EDGE_VLA_GEMM_BF16
#define EDGE_VLA_GEMM_BF16

#include "lanes.h"

#define TILE 3        /* rows at a time: their 24 accumulators fit the registers */
#define GEMV_ROWS 6   /* up to so many rows, codes are dequantised for each tile; beyond, once for all */
#define PANEL_TYPE bf16

/* sums[m, 64] += scale[64] (x[m, k] x lines[64, k]) for k = 4 steps and m <= TILE rows. */
INLINE void gemm_tile(const int rows, const int bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch,
                      const float *scale, float *sums, int64_t sums_pitch) {
    Acc even[TILE][PARTS], odd[TILE][PARTS];
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) even[m][part] = odd[m][part] = zero_acc();
    for (int64_t k = 0; k < steps; k++) {
        if (bits < 16)
            for (int at = 0; at < LINE(bits); at += 64) __builtin_prefetch(lines + k * LINE(bits) + at + PREFETCH);
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            Lanes first, second;
            unpack_lanes(bits, lines + k * LINE(bits), part, &first, &second);
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

/* `gemm_tile` over any number of rows. */
INLINE void gemm_tiles_of(const int bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch,
                          int64_t rows, const float *scale, float *sums, int64_t sums_pitch) {
    int64_t m = 0;
    for (; m + TILE <= rows; m += TILE)
        gemm_tile(TILE, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 2) gemm_tile(2, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 1) gemm_tile(1, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
}

static void gemm_tiles(int64_t bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch, int64_t rows,
                       const float *scale, float *sums, int64_t sums_pitch) {
    if (bits == 4) gemm_tiles_of(4, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
    else if (bits == 8) gemm_tiles_of(8, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
    else gemm_tiles_of(16, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
}

/* Lines in 4 or 8 bits -> the same lines in bf16, without scales. */
INLINE void dequantise_panel(const int bits, const uint8_t *lines, int64_t steps, uint8_t *panel) {
    for (int64_t k = 0; k < steps; k++)
        for (int part = 0; part < PARTS; part++) {
            Lanes first, second;
            unpack_lanes(bits, lines + k * LINE(bits), part, &first, &second);
            store_lanes(panel + k * LINE(16) + part * 4 * LANES, first);
            store_lanes(panel + k * LINE(16) + part * 4 * LANES + 2 * LANES, second);
        }
}

/* sums[m, 64] = x[m, k] x lines of pairs of 64 outputs [64, k] in bf16, times scale[64]. */
static void bf16_product(const uint8_t *lines, int64_t k, const bf16 *x, int64_t pitch, int64_t rows,
                         const float *scale, float *sums, int64_t sums_pitch, uint8_t *panel) {
    (void)panel;
    gemm_tiles(16, lines, k / STEP, x, pitch, rows, scale, sums, sums_pitch);
}

/* sums[m, 64] = x[m, k] x one block of 64 outputs [64, k]. */
static void gemm_block(const Matrix *w, int64_t block, const bf16 *x, int64_t pitch, int64_t rows, float *sums,
                       uint8_t *panel) {
    int64_t piece = w->group < PIECE ? w->group : PIECE;
    memset(sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->k; k += piece) {
        int64_t steps = (w->k - k < piece ? w->k - k : piece) / STEP, bits = w->bits;
        const uint8_t *lines = w->codes + (block * w->k + k) / STEP * LINE(bits);
        const float *scale = ones;
        float scale_row[BLOCK];
        if (w->scales) {
            const bf16 *scales = w->scales + (block * (w->k / w->group) + k / w->group) * BLOCK;
            for (int i = 0; i < BLOCK; i++) scale_row[i] = to_float(scales[i]);
            scale = scale_row;
        }
        if (rows > GEMV_ROWS && bits < 16) {
            if (bits == 4) dequantise_panel(4, lines, steps, panel);
            else dequantise_panel(8, lines, steps, panel);
            lines = panel;
            bits = 16;
        }
        gemm_tiles(bits, lines, steps, x + k, pitch, rows, scale, sums, BLOCK);
    }
}

#endif
