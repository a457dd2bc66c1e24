/* The product of rows in bf16 with lines of pairs in bf16, both widened: sums in float32, each input rounded once.
 *
 * Every output's sum goes through its inputs in order, FLOAT_PIECE at a time: so vectors of any width, tiles of any
 * height, and panel or not, give the same bits.
 */
#ifndef EDGE_VLA_GEMM_FLOAT
#define EDGE_VLA_GEMM_FLOAT

#include "lanes.h"

#define TILE FLOAT_ROWS
#define FLOAT_PIECE 64 /* inputs: their panel of 64 outputs, in float32, fits the first cache */
#define PANEL_ROWS 12  /* from so many rows on, weights are widened once for all */

/* sums[m, 64] += scale[64] (x[m, count] x weights[64, count]): weights widened [count, 64], or lines of pairs. */
INLINE void float_tile(const int rows, const int widened, const uint8_t *weights, int64_t count, const float *x,
                       const float *scale, float *sums, int64_t sums_pitch) {
    for (int column = 0; column < VECTORS; column += FLOAT_COLUMNS) {
        Floats sum[FLOAT_ROWS][FLOAT_COLUMNS];
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < FLOAT_COLUMNS; c++) sum[m][c] = all_floats(0.0f);
        for (int64_t k = 0; k < count; k += 2) {
            Floats first[FLOAT_COLUMNS], second[FLOAT_COLUMNS];
#pragma GCC unroll 8
            for (int c = 0; c < FLOAT_COLUMNS; c++) {
                int output = (column + c) * WIDTH;
                if (widened) {
                    first[c] = load_floats((const float *)weights + k * BLOCK + output);
                    second[c] = load_floats((const float *)weights + (k + 1) * BLOCK + output);
                } else {
                    const uint8_t *line = weights + k / STEP * LINE(16);
                    widen(load_words(line + (output / 16 * 32 + k % STEP / 2 * 16 + output % 16) * 4), first + c, second + c);
                }
            }
#pragma GCC unroll 6
            for (int m = 0; m < rows; m++) {
                Floats one = all_floats(x[m * FLOAT_PIECE + k]);
#pragma GCC unroll 8
                for (int c = 0; c < FLOAT_COLUMNS; c++) sum[m][c] = multiply_add(first[c], one, sum[m][c]);
            }
#pragma GCC unroll 6
            for (int m = 0; m < rows; m++) {
                Floats one = all_floats(x[m * FLOAT_PIECE + k + 1]);
#pragma GCC unroll 8
                for (int c = 0; c < FLOAT_COLUMNS; c++) sum[m][c] = multiply_add(second[c], one, sum[m][c]);
            }
        }
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < FLOAT_COLUMNS; c++) {
                int output = (column + c) * WIDTH;
                float *to = sums + m * sums_pitch + output;
                store_floats(to, multiply_add(sum[m][c], load_floats(scale + output), load_floats(to)));
            }
    }
}

static void float_tile_of(int64_t rows, int widened, const uint8_t *weights, int64_t count, const float *x,
                          const float *scale, float *sums, int64_t sums_pitch) {
#define CASE(rows) \
    case rows: \
        if (widened) float_tile(rows, 1, weights, count, x, scale, sums, sums_pitch); \
        else float_tile(rows, 0, weights, count, x, scale, sums, sums_pitch); \
        break
    switch (rows) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
    }
#undef CASE
}

/* Lines of pairs -> float32 [count, 64]. */
static void widen_panel(const uint8_t *lines, int64_t count, float *panel) {
    for (int64_t k = 0; k < count; k += 2)
        for (int output = 0; output < BLOCK; output += WIDTH) {
            const uint8_t *line = lines + k / STEP * LINE(16);
            Floats first, second;
            widen(load_words(line + (output / 16 * 32 + k % STEP / 2 * 16 + output % 16) * 4), &first, &second);
            store_floats(panel + k * BLOCK + output, first);
            store_floats(panel + (k + 1) * BLOCK + output, second);
        }
}

/* sums[m, 64] += scale[64] (x[m, k] x lines of pairs of 64 outputs [64, k]). */
static void bf16_product(const uint8_t *lines, int64_t k, const bf16 *x, int64_t pitch, int64_t rows,
                         const float *scale, float *sums, int64_t sums_pitch, uint8_t *panel) {
    float x_floats[FLOAT_ROWS * FLOAT_PIECE];
    for (int64_t begin = 0; begin < k; begin += FLOAT_PIECE) {
        int64_t count = k - begin < FLOAT_PIECE ? k - begin : FLOAT_PIECE;
        const uint8_t *weights = lines + begin / STEP * LINE(16);
        int widened = rows >= PANEL_ROWS;
        if (widened) {
            widen_panel(weights, count, (float *)panel);
            weights = panel;
        }
        for (int64_t m = 0; m < rows; m += FLOAT_ROWS) {
            int64_t tile = rows - m < FLOAT_ROWS ? rows - m : FLOAT_ROWS;
            for (int64_t i = 0; i < tile; i++)
                for (int64_t at = 0; at < count; at++)
                    x_floats[i * FLOAT_PIECE + at] = to_float(x[(m + i) * pitch + begin + at]);
            float_tile_of(tile, widened, weights, count, x_floats, scale, sums + m * sums_pitch, sums_pitch);
        }
    }
}

/* sums[m, 64] = x[m, k] x one block of 64 outputs [64, k]. */
static void gemm_block(const Matrix *w, int64_t block, const bf16 *x, int64_t pitch, int64_t rows, float *sums,
                       uint8_t *panel) {
    memset(sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    bf16_product(w->codes + block * w->k / STEP * LINE(16), w->k, x, pitch, rows, ones, sums, BLOCK, panel);
}

#endif
