/* The product of rows of integers with 4-bit or 8-bit weights: sums are whole numbers, in whatever order they are added.
 *
 * Codes of weights are stored plus ZERO_POINT(bits), and what this adds to a sum, the zero point times the sum of the
 * row's codes, is subtracted again. Rows in 16 bits are multiplied plane by plane, the first sum shifted between.
 */
#ifndef EDGE_VLA_GEMM_INT
#define EDGE_VLA_GEMM_INT

#include "lanes.h"
#include "rows.h"

/* Some rows of integers, from one input on. */
typedef struct {
    const int8_t *codes;
    int64_t pitch, planes, plane_pitch;
} IntTile;

/* to[r] += scale[r] (sum[r] - correction), or to[r] += sum[r] in whole numbers without a scale. */
INLINE void add_int_sums(void *to, Ints sum, int32_t correction, const float *scale) {
    if (scale) {
        Floats real = to_floats(subtract_all(sum, correction));
        store_floats(to, multiply_add(real, load_floats(scale), load_floats(to)));
    } else store_ints(to, add_ints(load_ints(to), sum));
}

/* sums[m, 64] += x[m, 4 steps] x panel[steps, 64 words]. */
INLINE void int_tile(const int rows, const uint8_t *panel, int64_t steps, IntTile x, const int32_t *correction,
                     const float *scale, float *sums) {
    for (int column = 0; column < VECTORS; column += INT_COLUMNS) {
        Ints sum[INT_ROWS][INT_COLUMNS];
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < INT_COLUMNS; c++) sum[m][c] = zero_ints();
        for (int64_t plane = 0; plane < x.planes; plane++) {
            const int8_t *codes = x.codes + plane * x.plane_pitch;
            for (int m = 0; m < rows && plane; m++)
                for (int c = 0; c < INT_COLUMNS; c++) sum[m][c] = shift_left(sum[m][c], 8);
            for (int64_t k = 0, end; k < steps; k = end) {
                end = steps - k < CHAIN ? steps : k + CHAIN;
                Chain chain[INT_ROWS][INT_COLUMNS];
                for (int m = 0; m < rows; m++)
                    for (int c = 0; c < INT_COLUMNS; c++) chain[m][c] = begin_chain(sum[m][c]);
#pragma GCC unroll STEPS_AT_ONCE
                for (int64_t step = k; step < end; step++) {
                    Words weights[INT_COLUMNS];
#pragma GCC unroll 4
                    for (int c = 0; c < INT_COLUMNS; c++)
                        weights[c] = load_words(panel + (step * BLOCK + (column + c) * WIDTH) * 4);
#pragma GCC unroll 6
                    for (int m = 0; m < rows; m++) {
                        Words four = all_words(codes + m * x.pitch + STEP * step);
#pragma GCC unroll 4
                        for (int c = 0; c < INT_COLUMNS; c++) chain[m][c] = dot_bytes(chain[m][c], weights[c], four);
                    }
                }
                for (int m = 0; m < rows; m++)
                    for (int c = 0; c < INT_COLUMNS; c++) sum[m][c] = end_chain(sum[m][c], chain[m][c]);
            }
        }
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < INT_COLUMNS; c++) {
                int at = (column + c) * WIDTH;
                add_int_sums(sums + m * BLOCK + at, sum[m][c], correction[m], scale ? scale + at : 0);
            }
    }
}

#if INT16_PRODUCT(8, 1)
/* One row's inputs from one or two planes as 16-bit numbers. */
INLINE void join_planes(IntTile x, int64_t row, int64_t count, int16_t *to) {
    const int8_t *high = x.codes + row * x.pitch, *low = high + x.plane_pitch;
    if (x.planes == 1)
        for (int64_t i = 0; i < count; i++) to[i] = high[i];
    else
        for (int64_t i = 0; i < count; i++) to[i] = (int16_t)(high[i] * 256 + low[i]);
}

/* `int_tile` where bytes have no exact product: of panel[steps, 2, 64 words] in 16 bits. */
INLINE void int16_tile(const int rows, const uint8_t *panel, int64_t steps, IntTile x, const int32_t *correction,
                       const float *scale, float *sums) {
    int16_t x16[INT_ROWS][PIECE];
    for (int m = 0; m < rows; m++) join_planes(x, m, STEP * steps, x16[m]);
    for (int column = 0; column < VECTORS; column += INT_COLUMNS) {
        Ints sum[INT_ROWS][INT_COLUMNS];
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < INT_COLUMNS; c++) sum[m][c] = zero_ints();
        for (int64_t pair = 0; pair < 2 * steps; pair++) {
            Words weights[INT_COLUMNS];
#pragma GCC unroll 4
            for (int c = 0; c < INT_COLUMNS; c++)
                weights[c] = load_words(panel + (pair * BLOCK + (column + c) * WIDTH) * 4);
#pragma GCC unroll 4
            for (int m = 0; m < rows; m++) {
                Words two = all_words(x16[m] + 2 * pair);
#pragma GCC unroll 4
                for (int c = 0; c < INT_COLUMNS; c++) sum[m][c] = dot_int16(sum[m][c], weights[c], two);
            }
        }
        for (int m = 0; m < rows; m++)
            for (int c = 0; c < INT_COLUMNS; c++) {
                int at = (column + c) * WIDTH;
                add_int_sums(sums + m * BLOCK + at, sum[m][c], correction[m], scale ? scale + at : 0);
            }
    }
}

/* The same of one row and lines of words in 8 bits. */
static void int16_row(const uint8_t *lines, int64_t steps, IntTile x, int32_t correction, const float *scale,
                      float *sums) {
    int16_t x16[PIECE];
    join_planes(x, 0, STEP * steps, x16);
    for (int column = 0; column < VECTORS; column += GEMV_COLUMNS) {
        Ints sum[GEMV_COLUMNS];
        for (int c = 0; c < GEMV_COLUMNS; c++) sum[c] = zero_ints();
        for (int64_t step = 0; step < steps; step++) {
            Words two = all_words(x16 + STEP * step), next = all_words(x16 + STEP * step + 2);
#pragma GCC unroll 4
            for (int c = 0; c < GEMV_COLUMNS; c++) {
                const uint8_t *at = lines + (step * BLOCK + (column + c) * WIDTH) * 4;
                Words first, second;
                if (c * WIDTH % 16 == 0) __builtin_prefetch(at + PREFETCH);
                split_bytes(load_words(at), &first, &second);
                sum[c] = dot_int16(dot_int16(sum[c], first, two), second, next);
            }
        }
        for (int c = 0; c < GEMV_COLUMNS; c++) {
            int at = (column + c) * WIDTH;
            add_int_sums(sums + at, sum[c], correction, scale ? scale + at : 0);
        }
    }
}

/* Lines of words in 4 or 8 bits -> words of 16-bit numbers [steps, 2, 64]. */
static void widen_words(const uint8_t *lines, int64_t bits, int64_t steps, uint8_t *panel) {
    for (int64_t step = 0; step < steps; step += 8 / bits)
        for (int at = 0; at < BLOCK * 4; at += WIDTH * 4, lines += WIDTH * 4) {
            uint8_t *to = panel + step * BLOCK * 8 + at;
            Words low = load_words(lines), high, first, second;
            __builtin_prefetch(lines + PREFETCH);
            if (bits == 4) {
                split_nibbles(low, &low, &high);
                split_bytes(high, &first, &second);
                store_words(to + BLOCK * 8, first), store_words(to + BLOCK * 12, second);
            }
            split_bytes(low, &first, &second);
            store_words(to, first), store_words(to + BLOCK * 4, second);
        }
}

static void int16_tile_of(int64_t rows, const uint8_t *panel, int64_t steps, IntTile x, const int32_t *correction,
                          const float *scale, float *sums) {
    switch (rows) {
        case 1: int16_tile(1, panel, steps, x, correction, scale, sums); break;
        case 2: int16_tile(2, panel, steps, x, correction, scale, sums); break;
        case 3: int16_tile(3, panel, steps, x, correction, scale, sums); break;
        case 4: int16_tile(4, panel, steps, x, correction, scale, sums); break;
    }
}
#endif

static void int_tile_of(int64_t rows, const uint8_t *panel, int64_t steps, IntTile x, const int32_t *correction,
                        const float *scale, float *sums) {
    switch (rows) {
        case 1: int_tile(1, panel, steps, x, correction, scale, sums); break;
        case 2: int_tile(2, panel, steps, x, correction, scale, sums); break;
        case 3: int_tile(3, panel, steps, x, correction, scale, sums); break;
        case 4: int_tile(4, panel, steps, x, correction, scale, sums); break;
#if INT_ROWS == 6
        case 5: int_tile(5, panel, steps, x, correction, scale, sums); break;
        case 6: int_tile(6, panel, steps, x, correction, scale, sums); break;
#endif
    }
}

/* Lines of words in 4 bits -> words of unsigned bytes [2 lines, 64]. */
static void unpack_words(const uint8_t *lines, int64_t count, uint8_t *panel) {
    for (int64_t line = 0; line < count; line++)
        for (int at = 0; at < BLOCK * 4; at += WIDTH * 4) {
            Words low, high;
            if (at % 64 == 0) __builtin_prefetch(lines + line * BLOCK * 4 + at + PREFETCH);
            split_nibbles(load_words(lines + line * BLOCK * 4 + at), &low, &high);
            store_words(panel + 2 * line * BLOCK * 4 + at, low);
            store_words(panel + (2 * line + 1) * BLOCK * 4 + at, high);
        }
}

/* `int_tile` of one row and lines of words: both planes meet a code while it is in a register. */
INLINE void byte_row(const int bits, const int planes, const uint8_t *lines, int64_t count, IntTile x, int32_t correction,
                       const float *scale, float *sums) {
    for (int column = 0; column < VECTORS; column += GEMV_COLUMNS) {
        Ints sum[MAX_PLANES][GEMV_COLUMNS];
        for (int c = 0; c < GEMV_COLUMNS; c++) sum[0][c] = sum[1][c] = zero_ints();
        for (int64_t begin = 0, end; begin < count; begin = end) {
            end = count - begin < CHAIN / 2 ? count : begin + CHAIN / 2;
            Chain chain[MAX_PLANES][GEMV_COLUMNS];
            for (int plane = 0; plane < planes; plane++)
                for (int c = 0; c < GEMV_COLUMNS; c++) chain[plane][c] = begin_chain(sum[plane][c]);
            for (int64_t line = begin; line < end; line++) {
                const int8_t *inputs = x.codes + 8 / bits * STEP * line;
                Words low_x[MAX_PLANES], high_x[MAX_PLANES];
                for (int plane = 0; plane < planes; plane++) {
                    low_x[plane] = all_words(inputs + plane * x.plane_pitch);
                    if (bits == 4) high_x[plane] = all_words(inputs + plane * x.plane_pitch + STEP);
                }
#pragma GCC unroll 4
                for (int c = 0; c < GEMV_COLUMNS; c++) {
                    const uint8_t *at = lines + (line * BLOCK + (column + c) * WIDTH) * 4;
                    Words low = load_words(at), high;
                    if (c * WIDTH % 16 == 0) __builtin_prefetch(at + PREFETCH);
                    if (bits == 4) split_nibbles(low, &low, &high);
#pragma GCC unroll 2
                    for (int plane = 0; plane < planes; plane++) {
                        chain[plane][c] = dot_bytes(chain[plane][c], low, low_x[plane]);
                        if (bits == 4) chain[plane][c] = dot_bytes(chain[plane][c], high, high_x[plane]);
                    }
                }
            }
            for (int plane = 0; plane < planes; plane++)
                for (int c = 0; c < GEMV_COLUMNS; c++) sum[plane][c] = end_chain(sum[plane][c], chain[plane][c]);
        }
        for (int c = 0; c < GEMV_COLUMNS; c++) {
            int at = (column + c) * WIDTH;
            Ints whole = planes == 1 ? sum[0][c] : add_ints(shift_left(sum[0][c], 8), sum[1][c]);
            add_int_sums(sums + at, whole, correction, scale ? scale + at : 0);
        }
    }
}

/* The rows m .. m + count - 1 from input `k` on, and what the weights' zero point adds to their sums. */
INLINE IntTile tile_at(const IntRows *x, int64_t bits, int64_t k, int64_t steps, int64_t m, int64_t count,
                       int32_t *correction) {
    const int32_t *begin = x->prefix_sum + k / SPAN * x->prefix_pitch + m;
    const int32_t *end = x->prefix_sum + spans(k + STEP * steps) * x->prefix_pitch + m;
    for (int64_t i = 0; i < count; i++) correction[i] = ZERO_POINT(bits) * (end[i] - begin[i]);
    return (IntTile){x->codes + m * x->pitch + k, x->pitch, x->planes, x->pitch / x->planes};
}

/* `int_tile` of one row, which needs no panel. */
static void int_row(const IntRows *x, int64_t bits, int64_t k, int64_t steps, const uint8_t *lines, const float *scale,
                    float *sums) {
    int32_t correction;
    IntTile tile = tile_at(x, bits, k, steps, 0, 1, &correction);
    if (bits == 4 && x->planes == 1) byte_row(4, 1, lines, steps / 2, tile, correction, scale, sums);
    else if (bits == 4) byte_row(4, 2, lines, steps / 2, tile, correction, scale, sums);
#if INT16_PRODUCT(8, 1)
    else int16_row(lines, steps, tile, correction, scale, sums);
#else
    else if (x->planes == 1) byte_row(8, 1, lines, steps, tile, correction, scale, sums);
    else byte_row(8, 2, lines, steps, tile, correction, scale, sums);
#endif
}

/* Asks for `count` rows from x on and their sums: rows lie too far apart for the hardware to guess the next ones. */
INLINE void prefetch_rows(IntTile x, int64_t steps, int64_t count, const float *sums) {
    for (int64_t m = 0; m < count; m++) {
        for (int64_t plane = 0; plane < x.planes; plane++)
            for (int64_t k = 0; k < STEP * steps; k += 64)
                __builtin_prefetch(x.codes + m * x.pitch + plane * x.plane_pitch + k);
        for (int64_t i = 0; i < BLOCK; i += 16) __builtin_prefetch(sums + m * BLOCK + i, 1);
    }
}

/* `int_tile` over any number of rows, from input `k` on. */
static void int_tiles(const IntRows *x, int64_t bits, int64_t k, int64_t steps, int64_t rows, const uint8_t *lines,
                      const float *scale, float *sums, uint8_t *panel) {
    const uint8_t *weights = bits == 4 || INT16_PRODUCT(bits, x->planes) ? panel : lines;
#if INT16_PRODUCT(8, 1)
    if (INT16_PRODUCT(bits, x->planes)) widen_words(lines, bits, steps, panel);
    else
#endif
    if (bits == 4) unpack_words(lines, steps / 2, panel);
    for (int64_t m = 0; m < rows; m += INT_ROWS) {
        int64_t count = rows - m < INT_ROWS ? rows - m : INT_ROWS;
        int32_t correction[INT_ROWS];
        IntTile tile = tile_at(x, bits, k, steps, m, count, correction), next = tile;
        next.codes += count * x->pitch;
        int64_t left = rows - m - count;
        prefetch_rows(next, steps, left < INT_ROWS ? left : INT_ROWS, sums + (m + count) * BLOCK);
#if INT16_PRODUCT(8, 1)
        if (INT16_PRODUCT(bits, x->planes)) {
            int16_tile_of(count, weights, steps, tile, correction, scale, sums + m * BLOCK);
            continue;
        }
#endif
        int_tile_of(count, weights, steps, tile, correction, scale, sums + m * BLOCK);
    }
}

/* Inputs at a time where sums stay whole numbers: nothing is made of weights in 8 bits but where they are widened. */
#define WHOLE_PIECE (INT16_PRODUCT(8, 1) ? PIECE : 4 * PIECE)

/* sums[m, 64] = x[m, k] x one block of 64 outputs [64, k]. In 8 bits and of one group, sums stay whole until the end. */
static void int_block(const Matrix *w, int64_t block, const IntRows *x, int64_t rows, float *sums, uint8_t *panel) {
    int whole = w->group >= w->k && x->planes == 1;
    int64_t piece = whole && w->bits == 8 ? WHOLE_PIECE : w->group < PIECE ? w->group : PIECE;
    float scale[BLOCK];
    memset(sums, 0, (size_t)(rows * BLOCK) * sizeof(float));
    for (int64_t k = 0; k < w->k; k += piece) {
        int64_t steps = (w->k - k < piece ? w->k - k : piece) / STEP;
        const uint8_t *lines = w->codes + (block * w->k + k) / STEP * LINE(w->bits);
        const bf16 *scales = w->scales + (block * (w->k / w->group) + k / w->group) * BLOCK;
        for (int i = 0; i < BLOCK; i++) scale[i] = to_float(scales[i]);
        if (rows == 1) int_row(x, w->bits, k, steps, lines, whole ? 0 : scale, sums);
        else int_tiles(x, w->bits, k, steps, rows, lines, whole ? 0 : scale, sums, panel);
    }
    for (int64_t m = 0; m < rows; m++, sums += BLOCK) {
        float x_scale = x->scales[m];
        int32_t correction = ZERO_POINT(w->bits) * x->prefix_sum[spans(w->k) * x->prefix_pitch + m];
        for (int i = 0; i < BLOCK; i++) {
            int32_t sum;
            memcpy(&sum, sums + i, sizeof sum);
            sums[i] = whole ? (float)(sum - correction) * x_scale * scale[i] : sums[i] * x_scale;
        }
    }
}

#endif
