/* y = x W^T, [m, k] x [n, k] -> [m, n], for weights in 4, 8 or 16 bits, over this thread's range of the outputs.
 *
 * Batch-invariant: a row's bits depend neither on m, nor on its place among the rows, nor on the threads.
 */
#ifndef EDGE_VLA_GEMM
#define EDGE_VLA_GEMM

#include "structs.h"
#include "threads.h"

#define PIECE 128     /* inputs that are summed in registers */
#define PREFETCH 4096 /* bytes ahead: the hardware prefetcher alone is too late for a stream of codes */

#include "lanes.h"

static const float ones[BLOCK] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
};

#if BF16_DOT
#include "gemm_bf16.h"
#else
#include "gemm_float.h"
#endif
#include "gemm_int.h"

typedef enum { STORE, ADD, GELU } Epilogue; /* out = y, out += y, or out = gelu(y) */

/* What one thread needs for a gemm of m rows. */
typedef struct {
    uint8_t *panel; /* PIECE inputs of 64 outputs, in 16 bits */
    float *sums;    /* [m, 64] float32 or int32 */
} Scratch;

static inline Scratch gemm_scratch(uint8_t *memory) {
    Scratch scratch = {memory, (float *)(memory + PIECE * BLOCK * sizeof(bf16))};
    return scratch;
}

/* The planes of integers in which `w` takes its rows; 0: in bf16. */
static inline int planes_of(const Matrix *w, int in_prefill) {
    if (w->int8_inputs == ALWAYS || (w->int8_inputs == IN_PREFILL && in_prefill)) return 1;
    return w->bits == 16 ? 0 : MAX_PLANES;
}

/* out[m, 64] = epilogue((sums[m, 64] + bias[64]) out_scale[64]), rounded to bf16 where torch's operators round. */
static void store_block(const float *sums, int64_t rows, const bf16 *bias, Epilogue epilogue, const bf16 *out_scale,
                        bf16 *out, int64_t pitch) {
    for (int64_t m = 0; m < rows; m++, sums += BLOCK, out += pitch) {
        float value[BLOCK];
        for (int i = 0; i < BLOCK; i++) value[i] = round_bf16(bias ? sums[i] + to_float(bias[i]) : sums[i]);
        if (out_scale)
            for (int i = 0; i < BLOCK; i++) value[i] = round_bf16(value[i] * to_float(out_scale[i]));
        if (epilogue == GELU)
            for (int i = 0; i < BLOCK; i++) value[i] = gelu(value[i]);
        if (epilogue == ADD)
            for (int i = 0; i < BLOCK; i++) value[i] += to_float(out[i]);
        for (int i = 0; i < BLOCK; i++) out[i] = to_bf16(value[i]);
    }
}

/* x [rows, k] x w [n, k] -> out [rows, n]. Rows lie `pitch` apart; with `integers` they are taken from there. */
static void gemm(const Matrix *w, const bf16 *x, int64_t pitch, const IntRows *integers, int64_t rows, bf16 *out,
                 int64_t out_pitch, Epilogue epilogue, const bf16 *out_scale, Scratch scratch, Thread thread) {
    int64_t blocks = w->n / BLOCK;
    for (int64_t block = range_begin(thread, blocks); block < range_end(thread, blocks); block++) {
        int64_t column = block * BLOCK;
        if (integers) int_block(w, block, integers, rows, scratch.sums, scratch.panel);
        else gemm_block(w, block, x, pitch, rows, scratch.sums, scratch.panel);
        store_block(scratch.sums, rows, w->bias ? w->bias + column : 0, epilogue, out_scale ? out_scale + column : 0,
                    out + column, out_pitch);
    }
}

#endif
