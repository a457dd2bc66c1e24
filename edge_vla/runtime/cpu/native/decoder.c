/* One pass of a Llama decoder over a KV cache, and the decode steps behind a prefill.
 *
 * Rounds to bf16 where torch's operators do, but for the rotary embedding, which rounds once.
 */
#include "attention.h"

/* The integers in which `w` takes its rows in this pass, or 0: in bf16. */
static const IntRows *integers_of(const Matrix *w, const Pass *pass, const DecoderWorkspace *ws) {
    int planes = planes_of(w, pass->prefill != 0);
    return planes == 0 ? 0 : planes == 1 ? &ws->rows8 : &ws->rows16;
}

/* Whether a part of `linear` takes integers. */
static int any_integers(const Linear *linear, const Pass *pass) {
    int any = 0;
    for (int64_t i = 0; i < linear->parts; i++) any |= planes_of(linear->part + i, pass->prefill != 0);
    return any;
}

/* This thread's range of x [rows, k] -> the integers that `linear` needs. */
static void quantise_rows(const Linear *linear, const Pass *pass, const bf16 *x, int64_t pitch, int64_t rows,
                          const DecoderWorkspace *ws, Thread thread) {
    int needed = 0; /* bit p: in p planes */
    for (int64_t i = 0; i < linear->parts; i++) needed |= 1 << planes_of(linear->part + i, pass->prefill != 0);
    for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++) {
        if (needed & 2) quantise_row(x + m * pitch, linear->part[0].k, &ws->rows8, m);
        if (needed & 4) quantise_row(x + m * pitch, linear->part[0].k, &ws->rows16, m);
    }
}

/* x [rows, k] -> out [rows, sum of the parts' n]; parts that take integers find x there. */
static void apply(const Linear *linear, const Pass *pass, const bf16 *x, int64_t pitch, int64_t rows, bf16 *out,
                  int64_t out_pitch, Epilogue epilogue, const DecoderWorkspace *ws, Scratch scratch, Thread thread) {
    for (int64_t i = 0; i < linear->parts; out += linear->part[i++].n)
        gemm(linear->part + i, x, pitch, integers_of(linear->part + i, pass, ws), rows, out, out_pitch, epilogue, 0,
             scratch, thread);
}

/* out[i] = x[i] / rms(x) weight[i], for one row. */
static void rms_norm(const bf16 *x, const bf16 *weight, int64_t width, float eps, bf16 *out) {
    float scale = 1.0f / sqrtf(sum_of_squares(x, 0.0f, width) / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = to_bf16(round_bf16(to_float(x[i]) * scale) * to_float(weight[i]));
}

/* This thread's range of x [rows, width] -> out [rows, width]. */
static void norm_rows(const Decoder *decoder, const bf16 *x, const bf16 *weight, int64_t rows, bf16 *out,
                      int64_t x_pitch, int64_t out_pitch, Thread thread) {
    for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
        rms_norm(x + m * x_pitch, weight, decoder->width, (float)decoder->norm_eps, out + m * out_pitch);
}

/* The rotary embedding of one head [width] in place. */
static void rotate(bf16 *head, int64_t width, const float *cos, const float *sin) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float left = to_float(head[i]), right = to_float(head[half + i]);
        head[i] = to_bf16(fused(left, cos[i], -(right * sin[i])));
        head[half + i] = to_bf16(fused(right, cos[half + i], left * sin[half + i]));
    }
}

/* qkv [rows, width + 2 kv_width] -> the cache, and context [rows, width] of rows first .. end - 1. */
static void attention(const Decoder *decoder, int64_t layer, const DecoderWorkspace *ws, const Cache *cache,
                      const Pass *pass, int64_t first, int64_t end, AttentionScratch scratch, Thread thread) {
    int64_t width = decoder->head_width, group = decoder->heads / decoder->kv_heads;
    int64_t keys_bytes = cache->slots * width * 2, values_bytes = cache->slots * round_up(width, BLOCK) * 2;
    for (int64_t head = range_begin(thread, decoder->kv_heads); head < range_end(thread, decoder->kv_heads); head++) {
        int64_t place = layer * decoder->kv_heads + head;
        HeadCache kv = {cache->keys + place * keys_bytes, cache->values + place * values_bytes, cache->slots, width};
        for (int64_t m = 0; m < pass->rows; m++) {
            bf16 *row = ws->qkv + m * ws->qkv_pitch;
            bf16 *key = row + decoder->width + head * width, *value = key + decoder->kv_heads * width;
            const float *cos = cache->cos + (pass->start + m) * width, *sin = cache->sin + (pass->start + m) * width;
            rotate(key, width, cos, sin);
            for (int64_t i = 0; i < group && m >= first && m < end; i++)
                rotate(row + (head * group + i) * width, width, cos, sin);
            append_kv(&kv, pass->start + m, key, value);
        }
        for (int64_t i = head * group; i < (head + 1) * group; i++)
            attend(&kv, ws->qkv + first * ws->qkv_pitch + i * width, ws->qkv_pitch, end - first,
                   pass->start + first + 1, 1, scratch, ws->context + first * ws->pitch + i * width, ws->pitch);
    }
}

/* out[i] = silu(gate[i]) up[i], for one row of gate_up [2 width]. */
static void gate(const bf16 *gate_up, int64_t width, bf16 *out) {
    for (int64_t i = 0; i < width; i++)
        out[i] = to_bf16(round_bf16(silu(to_float(gate_up[i]))) * to_float(gate_up[width + i]));
}

/* Embeddings in [rows, width] -> normed hidden states out [wanted rows, width].
 *
 * A thread reads its range of `in` before it waits for the others.
 */
static void forward(const Decoder *decoder, const DecoderWorkspace *ws, const Cache *cache, const Pass *pass,
                    const bf16 *in, bf16 *out, Scratch scratch, Thread thread) {
    int64_t width = decoder->width, pitch = ws->pitch, slots = cache->slots;
    AttentionScratch attention_scratch = {scratch.sums, (bf16 *)(scratch.sums + TILE * slots)};
    for (int64_t m = range_begin(thread, pass->rows); m < range_end(thread, pass->rows); m++)
        memcpy(ws->x + m * pitch, in + m * width, (size_t)width * sizeof *in);
    for (int64_t l = 0; l < decoder->layers; l++) {
        const DecoderLayer *layer = decoder->layer + l;
        int last = l == decoder->layers - 1;
        int64_t first = last ? pass->wanted : 0, end = last ? pass->wanted_end : pass->rows, rows = end - first;
        bf16 *x = ws->x + first * pitch, *normed = ws->normed + first * pitch;
        const bf16 *context = ws->context + first * pitch;
        wait_for_all(thread);
        norm_rows(decoder, ws->x, layer->input_norm, pass->rows, ws->normed, pitch, pitch, thread);
        quantise_rows(&layer->qkv, pass, ws->normed, pitch, pass->rows, ws, thread);
        wait_for_all(thread);
        apply(&layer->qkv, pass, ws->normed, pitch, pass->rows, ws->qkv, ws->qkv_pitch, STORE, ws, scratch,
              thread);
        wait_for_all(thread);
        attention(decoder, l, ws, cache, pass, first, end, attention_scratch, thread);
        wait_for_all(thread);
        if (any_integers(&layer->o_proj, pass)) {
            quantise_rows(&layer->o_proj, pass, context, pitch, rows, ws, thread);
            wait_for_all(thread);
        }
        apply(&layer->o_proj, pass, context, pitch, rows, x, pitch, ADD, ws, scratch, thread);
        wait_for_all(thread);
        norm_rows(decoder, x, layer->attention_norm, rows, normed, pitch, pitch, thread);
        quantise_rows(&layer->gate_up, pass, normed, pitch, rows, ws, thread);
        wait_for_all(thread);
        apply(&layer->gate_up, pass, normed, pitch, rows, ws->gate_up, ws->gate_up_pitch, STORE, ws, scratch,
              thread);
        wait_for_all(thread);
        for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
            gate(ws->gate_up + m * ws->gate_up_pitch, decoder->mlp_width, ws->hidden + m * ws->hidden_pitch);
        quantise_rows(&layer->down_proj, pass, ws->hidden, ws->hidden_pitch, rows, ws, thread);
        wait_for_all(thread);
        apply(&layer->down_proj, pass, ws->hidden, ws->hidden_pitch, rows, x, pitch, ADD, ws, scratch, thread);
    }
    wait_for_all(thread);
    int64_t wanted = pass->wanted_end - pass->wanted;
    norm_rows(decoder, ws->x + pass->wanted * pitch, decoder->norm, wanted, out, pitch, width, thread);
    wait_for_all(thread); /* the next pass may begin at once */
}

/* The index of the largest of values [count], the first of equals; margin: top 1 minus top 2, NaN if not all finite. */
static int32_t argmax(const bf16 *values, int64_t count, float *margin) {
    float first = -INFINITY, second = -INFINITY;
    int32_t at = 0, odd = 0;
    for (int64_t i = 0; i < count; i++) {
        float value = to_float(values[i]);
        odd |= (values[i] & 0x7f80) == 0x7f80;
        if (value > first) second = first, first = value, at = (int32_t)i;
        else if (value > second) second = value;
    }
    *margin = odd ? NAN : first - second;
    return at;
}

/* Functions that take a barrier are called by each of `count` threads; one thread alone needs no barrier. */

/* One pass: in [rows, width] -> out [wanted rows, width]. */
void edge_vla_decode(const Decoder *decoder, const DecoderWorkspace *ws, const Cache *cache, const Pass *pass,
                     const bf16 *in, bf16 *out, Barrier *barrier, int64_t index, int64_t count) {
    Thread thread = {barrier, index, count};
    forward(decoder, ws, cache, pass, in, out, gemm_scratch(ws->scratch + index * ws->scratch_bytes), thread);
}

/* Bins given [rows], the first at position `start` -> the best next bin of each, and of `further` greedy steps after
 * the last: best and margins [rows + further].
 */
void edge_vla_decode_steps(const Decoder *decoder, const DecoderWorkspace *ws, const Cache *cache,
                           const ActionHead *actions, const int32_t *given, int64_t rows, int64_t start,
                           int64_t further, int32_t *best, float *margins, Barrier *barrier, int64_t index,
                           int64_t count) {
    Thread thread = {barrier, index, count};
    Scratch scratch = gemm_scratch(ws->scratch + index * ws->scratch_bytes);
    int64_t width = decoder->width, n = actions->head.n;
    for (;;) {
        Pass pass = {rows, start, 0, rows, 0};
        for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
            memcpy(actions->rows + m * width, actions->embedding + given[m] * width, (size_t)width * sizeof(bf16));
        forward(decoder, ws, cache, &pass, actions->rows, actions->hidden, scratch, thread);
        gemm(&actions->head, actions->hidden, width, 0, rows, actions->logits, n, STORE, 0, scratch, thread);
        wait_for_all(thread);
        for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
            best[m] = argmax(actions->logits + m * n, actions->bins, margins + m);
        wait_for_all(thread);
        if (further-- == 0) return;
        start += rows, given = best + rows - 1, best += rows, margins += rows, rows = 1;
    }
}

/* x [rows, k] x weight [n, k] -> out [rows, n], on one thread. `integers`: buffers for a weight that takes such. */
void edge_vla_gemm(const Matrix *weight, const bf16 *x, int64_t rows, bf16 *out, uint8_t *memory,
                   const IntRows *integers) {
    Thread thread = {0, 0, 1};
    for (int64_t m = 0; m < rows && integers; m++) quantise_row(x + m * weight->k, weight->k, integers, m);
    gemm(weight, x, weight->k, integers, rows, out, weight->n, STORE, 0, gemm_scratch(memory), thread);
}

/* values [rows, count], `pitch` apart -> best [rows], margins [rows]. */
void edge_vla_argmax(const bf16 *values, int64_t rows, int64_t count, int64_t pitch, int32_t *best, float *margins) {
    for (int64_t m = 0; m < rows; m++) best[m] = argmax(values + m * pitch, count, margins + m);
}

/* What Python must know to lay out weights: what 8-bit codes are stored plus. */
const int32_t edge_vla_zero_point8 = ZERO_POINT(8);

/* In the order of `STRUCTS` in structs.py. */
const int64_t edge_vla_struct_sizes[] = {
    sizeof(Matrix), sizeof(IntRows), sizeof(Linear), sizeof(DecoderLayer), sizeof(Decoder), sizeof(DecoderWorkspace),
    sizeof(Cache), sizeof(Pass), sizeof(ActionHead), sizeof(TowerLayer), sizeof(Tower), sizeof(Vision),
    sizeof(VisionWorkspace),
};
