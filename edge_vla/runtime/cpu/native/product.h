/* y = x W^T for weights of 4, 8 or 16 bits, few rows or many, on this thread's share of the outputs.
 *
 * A row's bits depend on that row alone: not on how many rows there are, its place among them, or the threads.
 */
#ifndef EDGE_VLA_PRODUCT
#define EDGE_VLA_PRODUCT

#include "lanes.h"
#include "team.h"

#define TILE 3      /* rows together: their 24 sums fit the registers */
#define PIECE 128   /* inputs between two roundings of a sum to memory */
#define FEW 6       /* rows up to which codes are widened anew for each tile */
#define AHEAD 4096  /* bytes: a processor fetches a stream of codes too late by itself */

typedef struct {
    const uint8_t *codes; /* (outer / 64, inner / 4, line): `lanes.h`; outer and inner are padded with zeros */
    const bf16 *scales;   /* (outer / 64, inner / group, 64); NULL where codes are bfloat16 */
    const bf16 *bias;     /* (outer); NULL if there is none */
    int64_t outer, inner, group, bits;
    int64_t rounds; /* when its inputs are rounded to 8 bits by rows: `Rounds` */
} Matrix;

typedef enum { STORE, ADD, GELU } Finish; /* what becomes of a sum: itself, itself onto what is there, or its GELU */

typedef struct {
    uint8_t *panel; /* PIECE inputs of one block as lines of bfloat16, or of bytes (`whole.h`) */
    float *sums;    /* (rows, 64), or as many whole numbers */
} Bench;

static const float ones[BLOCK] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
};

/* sums[m][0 .. 63] += scale * sum over inputs of lines * x[m]. */
ALWAYS void tile(const int rows, const int bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch,
                 const float *scale, float *sums, int64_t sums_pitch) {
    Sums even[TILE][PARTS], odd[TILE][PARTS];
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) even[m][part] = odd[m][part] = no_sums();
    for (int64_t k = 0; k < steps; k++) {
        if (bits < 16)
            for (int at = 0; at < LINE(bits); at += 64) __builtin_prefetch(lines + k * LINE(bits) + at + AHEAD);
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
            Lanes first, second;
            unpack(bits, lines + k * LINE(bits), part, &first, &second);
#pragma GCC unroll 3
            for (int m = 0; m < rows; m++) {
                even[m][part] = multiply_add(even[m][part], first, x + m * pitch + STEP * k);
                odd[m][part] = multiply_add(odd[m][part], second, x + m * pitch + STEP * k + 2);
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++)
            add_scaled(sums + m * sums_pitch + 16 * part, even[m][part], odd[m][part], scale + 16 * part);
}

ALWAYS void tiles_of(const int bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch, int64_t rows,
                     const float *scale, float *sums, int64_t sums_pitch) {
    int64_t m = 0;
    for (; m + TILE <= rows; m += TILE)
        tile(TILE, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 2) tile(2, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
    if (rows - m == 1) tile(1, bits, lines, steps, x + m * pitch, pitch, scale, sums + m * sums_pitch, sums_pitch);
}

static void tiles(int64_t bits, const uint8_t *lines, int64_t steps, const bf16 *x, int64_t pitch, int64_t rows,
                  const float *scale, float *sums, int64_t sums_pitch) {
    if (bits == 4) tiles_of(4, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
    else if (bits == 8) tiles_of(8, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
    else tiles_of(16, lines, steps, x, pitch, rows, scale, sums, sums_pitch);
}

ALWAYS void panel_of(const int bits, const uint8_t *lines, int64_t steps, uint8_t *panel) {
    for (int64_t k = 0; k < steps; k++)
        for (int part = 0; part < PARTS; part++) {
            Lanes first, second;
            unpack(bits, lines + k * LINE(bits), part, &first, &second);
            keep_lanes(panel + k * LINE(16) + part * 4 * LANES, first);
            keep_lanes(panel + k * LINE(16) + part * 4 * LANES + 2 * LANES, second);
        }
}

/* One block's sums over all inputs. */
static void sum_block(const Matrix *w, int64_t block, const bf16 *x, int64_t pitch, int64_t rows, Bench bench) {
    int64_t piece = w->group < PIECE ? w->group : PIECE;
    memset(bench.sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->inner; k += piece) {
        int64_t steps = (w->inner - k < piece ? w->inner - k : piece) / STEP, bits = w->bits;
        const uint8_t *lines = w->codes + (block * w->inner + k) / STEP * LINE(bits);
        const float *scale = ones;
        float widened[BLOCK];
        if (w->scales) {
            const bf16 *scales = w->scales + (block * (w->inner / w->group) + k / w->group) * BLOCK;
            for (int i = 0; i < BLOCK; i++) widened[i] = widen(scales[i]);
            scale = widened;
        }
        if (rows > FEW && bits < 16) {
            if (bits == 4) panel_of(4, lines, steps, bench.panel);
            else panel_of(8, lines, steps, bench.panel);
            lines = bench.panel;
            bits = 16;
        }
        tiles(bits, lines, steps, x + k, pitch, rows, scale, bench.sums, BLOCK);
    }
}

static void finish_block(const float *sums, int64_t rows, const bf16 *bias, Finish finish, const bf16 *gain, bf16 *out,
                         int64_t pitch) {
    for (int64_t m = 0; m < rows; m++, sums += BLOCK, out += pitch) {
        float value[BLOCK];
        for (int i = 0; i < BLOCK; i++) value[i] = rounded(bias ? sums[i] + widen(bias[i]) : sums[i]);
        if (gain)
            for (int i = 0; i < BLOCK; i++) value[i] = rounded(value[i] * widen(gain[i]));
        if (finish == GELU)
            for (int i = 0; i < BLOCK; i++) value[i] = gelu(value[i]);
        if (finish == ADD)
            for (int i = 0; i < BLOCK; i++) value[i] += widen(out[i]);
        for (int i = 0; i < BLOCK; i++) out[i] = narrow(value[i]);
    }
}

/* x (rows, inner), out (rows, outer): rows lie `pitch` apart. Roundings to bfloat16 are those of torch's operators. */
static void product(const Matrix *w, const bf16 *x, int64_t pitch, int64_t rows, bf16 *out, int64_t out_pitch,
                    Finish finish, const bf16 *gain, Bench bench, Share share) {
    int64_t blocks = w->outer / BLOCK;
    for (int64_t block = first_of(share, blocks); block < end_of(share, blocks); block++) {
        int64_t column = block * BLOCK;
        sum_block(w, block, x, pitch, rows, bench);
        finish_block(bench.sums, rows, w->bias ? w->bias + column : 0, finish, gain ? gain + column : 0, out + column,
                     out_pitch);
    }
}

#endif
