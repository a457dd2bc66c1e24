/* Products of rows rounded to 8 bits, summed in whole numbers: twice the multiplications an instruction.
 *
 * The instruction takes one side without sign: codes of weights are lifted by `ABOVE(bits)`, and what that adds to a
 * sum, so many times the sum of the row's codes, is taken off again.
 */
#ifndef EDGE_VLA_WHOLE
#define EDGE_VLA_WHOLE

#include <math.h>

#include "product.h"

#define WHOLE_TILE 6 /* rows together: their 24 sums fit the registers */
#define SPAN 32      /* inputs between two of the sums over a row that are kept */
#define STEPS 127    /* a row's largest magnitude is put at this code */

typedef enum { NEVER, IN_PREFILL, ALWAYS_ROUNDS } Rounds;

typedef struct {
    int8_t *codes;   /* (rows, pitch) */
    int32_t *before; /* (rows, before_pitch): the sum of the codes before each SPAN */
    float *steps;    /* (rows): what one code stands for */
    int64_t pitch, before_pitch;
} Rounded;

static inline int64_t spans(int64_t inner) { return (inner + SPAN - 1) / SPAN; }

/* A row that is not finite has a step that is not, and so have all its products. */
static void round_row(const bf16 *x, int64_t inner, const Rounded *to, int64_t row) {
    int8_t *codes = to->codes + row * to->pitch;
    int32_t *before = to->before + row * to->before_pitch, sum = 0;
    uint16_t most = 0; /* among numbers without their signs, the order of their bits is their own */
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < inner; i++) {
        uint16_t size = x[i] & 0x7fff;
        most = size > most ? size : most;
    }
    float step = most < 0x7f80 ? widen(most) / STEPS : NAN;
    step = step < 1.17549435e-38f ? 1.17549435e-38f : step;
    for (int64_t k = 0, span = 0; k < inner; k += SPAN, span++) {
        int64_t end = inner - k < SPAN ? inner : k + SPAN;
        before[span] = sum;
        for (int64_t i = k; i < end; i++) {
            float real = widen(x[i]) / step;
            real = real < STEPS ? real : STEPS; /* what is no number too: its step is none either */
            codes[i] = (int8_t)rintf(real > -STEPS ? real : -STEPS);
            sum += codes[i];
        }
    }
    before[spans(inner)] = sum;
    to->steps[row] = step;
}

/* Sums of one piece: onto float sums, scaled, or with no scale onto whole sums as they are. */
ALWAYS void tile_whole(const int rows, const uint8_t *panel, int64_t steps, const int8_t *x, int64_t pitch,
                       const int32_t *above, const float *scale, void *sums) {
    Wholes sum[WHOLE_TILE][PARTS];
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) sum[m][part] = no_wholes();
    for (int64_t k = 0; k < steps; k++) {
        Bytes weights[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) weights[part] = kept_bytes(panel + (k * PARTS + part) * 2 * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++)
                sum[m][part] = multiply_add_whole(sum[m][part], weights[part], x + m * pitch + STEP * k);
    }
    for (int m = 0; m < rows; m++)
        for (int part = 0; part < PARTS; part++) {
            int at = m * BLOCK + 16 * part;
            if (scale) add_whole_scaled((float *)sums + at, sum[m][part], above[m], scale + 16 * part);
            else add_whole((int32_t *)sums + at, sum[m][part]);
        }
}

ALWAYS void bytes_of(const int bits, const uint8_t *lines, int64_t steps, uint8_t *panel) {
    for (int64_t k = 0; k < steps; k++)
        for (int part = 0; part < PARTS; part++) {
            __builtin_prefetch(lines + k * LINE(bits) + part * (LINE(bits) / PARTS) + AHEAD);
            keep_bytes(panel + (k * PARTS + part) * 2 * LANES, unpack_bytes(bits, lines + k * LINE(bits), part));
        }
}

static void tiles_whole(const Rounded *x, int64_t k, int64_t steps, int64_t rows, int above, const uint8_t *panel,
                        const float *scale, float *sums) {
    for (int64_t m = 0; m < rows; m += WHOLE_TILE) {
        int64_t count = rows - m < WHOLE_TILE ? rows - m : WHOLE_TILE;
        const int8_t *codes = x->codes + m * x->pitch + k;
        float *to = sums + m * BLOCK;
        int32_t lifted[WHOLE_TILE];
        for (int64_t i = 0; i < count; i++) {
            const int32_t *before = x->before + (m + i) * x->before_pitch;
            lifted[i] = above * (before[spans(k + STEP * steps)] - before[k / SPAN]);
        }
        switch (count) {
            case 1: tile_whole(1, panel, steps, codes, x->pitch, lifted, scale, to); break;
            case 2: tile_whole(2, panel, steps, codes, x->pitch, lifted, scale, to); break;
            case 3: tile_whole(3, panel, steps, codes, x->pitch, lifted, scale, to); break;
            case 4: tile_whole(4, panel, steps, codes, x->pitch, lifted, scale, to); break;
            case 5: tile_whole(5, panel, steps, codes, x->pitch, lifted, scale, to); break;
            default: tile_whole(6, panel, steps, codes, x->pitch, lifted, scale, to);
        }
    }
}

/* One block's sums over all inputs, in units of the output. A row of one group is whole numbers until the end. */
static void sum_block_whole(const Matrix *w, int64_t block, const Rounded *x, int64_t rows, Bench bench) {
    int one = w->group >= w->inner, above = ABOVE(w->bits);
    int64_t piece = w->group < PIECE ? w->group : PIECE;
    float scale[BLOCK];
    memset(bench.sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->inner; k += piece) {
        int64_t steps = (w->inner - k < piece ? w->inner - k : piece) / STEP;
        const uint8_t *lines = w->codes + (block * w->inner + k) / STEP * LINE(w->bits);
        const bf16 *scales = w->scales + (block * (w->inner / w->group) + k / w->group) * BLOCK;
        for (int i = 0; i < BLOCK; i++) scale[i] = widen(scales[i]);
        if (w->bits == 4) bytes_of(4, lines, steps, bench.panel);
        else bytes_of(8, lines, steps, bench.panel);
        tiles_whole(x, k, steps, rows, above, bench.panel, one ? 0 : scale, bench.sums);
    }
    for (int64_t m = 0; m < rows; m++) {
        float step = x->steps[m], *sums = bench.sums + m * BLOCK;
        int32_t lifted = above * x->before[m * x->before_pitch + spans(w->inner)];
        for (int i = 0; i < BLOCK; i++) {
            int32_t whole;
            memcpy(&whole, sums + i, sizeof whole);
            sums[i] = one ? (float)(whole - lifted) * step * scale[i] : sums[i] * step;
        }
    }
}

/* As `product`, of rounded rows. */
static void product_whole(const Matrix *w, const Rounded *x, int64_t rows, bf16 *out, int64_t out_pitch, Finish finish,
                          Bench bench, Share share) {
    int64_t blocks = w->outer / BLOCK;
    for (int64_t block = first_of(share, blocks); block < end_of(share, blocks); block++) {
        int64_t column = block * BLOCK;
        sum_block_whole(w, block, x, rows, bench);
        finish_block(bench.sums, rows, w->bias ? w->bias + column : 0, finish, 0, out + column, out_pitch);
    }
}

#endif
