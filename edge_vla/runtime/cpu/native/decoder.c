/* One pass of a Llama decoder over a cache: rows of embeddings in, normed hidden states out.
 *
 * Roundings to bfloat16 are where torch's operators have them, but for rotation, which rounds once.
 */
#include "attention.h"
#include "whole.h"

typedef struct {
    Matrix part[3]; /* products of one input, side by side */
    int64_t parts;
} Linear;

typedef struct {
    Linear qkv, o_proj, gate_up, down_proj;
    const bf16 *input_norm, *attention_norm; /* (width) */
} Layer;

typedef struct {
    int64_t layers, width, mlp_width, heads, kv_heads, head_width;
    double norm_eps;
    const Layer *layer;
    const bf16 *norm; /* (width) */
} Decoder;

/* Rows lie `*_pitch` apart, each a multiple of 64; what lies beyond a row's numbers is zero. */
typedef struct {
    bf16 *x, *normed, *qkv, *mixed, *gate_up, *hidden;
    int64_t pitch, qkv_pitch, gate_up_pitch, hidden_pitch;
    uint8_t *own; /* each thread's `own_bytes` */
    int64_t own_bytes;
    Rounded whole; /* of whatever the next product reads, where one rounds its inputs */
} Desk;

typedef struct {
    uint8_t *keys, *values; /* of each layer and key head: `Memory` */
    int64_t slots;
    const float *cos, *sin; /* (slots, head width), from position 0 on */
} Cache;

typedef struct {
    int64_t rows, start, wanted, wanted_end; /* wanted: rows whose hidden states are returned */
} Pass;

/* What bins of an action are to the network, and room for a pass of them. */
typedef struct {
    Matrix head;                  /* (bins, width) */
    const bf16 *embedding;        /* (bins, width) */
    bf16 *rows, *hidden, *logits; /* of a pass: (width), (width), (the head's padded outputs) */
    int64_t bins;
} Actions;

/* A pass that begins at the first row is a prefill. */
static int rounds(const Matrix *w, const Pass *pass) {
    return w->rounds == ALWAYS_ROUNDS || (w->rounds == IN_PREFILL && pass->start == 0);
}

static int any_rounds(const Linear *linear, const Pass *pass) {
    int any = 0;
    for (int64_t i = 0; i < linear->parts; i++) any |= rounds(linear->part + i, pass);
    return any;
}

/* What `linear` reads, rounded, if it wants that. Rows are those of this thread. */
static void round_rows(const Linear *linear, const Pass *pass, const bf16 *x, int64_t pitch, int64_t rows,
                       const Rounded *to, Share share) {
    if (any_rounds(linear, pass))
        for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
            round_row(x + m * pitch, linear->part[0].inner, to, m);
}

static void multiply(const Linear *linear, const Pass *pass, const bf16 *x, int64_t pitch, int64_t rows, bf16 *out,
                     int64_t out_pitch, Finish finish, const Rounded *whole, Bench bench, Share share) {
    for (int64_t i = 0; i < linear->parts; out += linear->part[i++].outer)
        if (rounds(linear->part + i, pass))
            product_whole(linear->part + i, whole, rows, out, out_pitch, finish, bench, share);
        else product(linear->part + i, x, pitch, rows, out, out_pitch, finish, 0, bench, share);
}

static void rms_norm(const bf16 *x, const bf16 *weight, int64_t width, float eps, bf16 *out) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += widen(x[i]) * widen(x[i]);
    float scale = 1.0f / sqrtf(sum / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = narrow(rounded(widen(x[i]) * scale) * widen(weight[i]));
}

static void norm_rows(const Decoder *decoder, const bf16 *x, const bf16 *weight, int64_t rows, bf16 *out,
                      int64_t x_pitch, int64_t out_pitch, Share share) {
    for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
        rms_norm(x + m * x_pitch, weight, decoder->width, (float)decoder->norm_eps, out + m * out_pitch);
}

static void rotate(bf16 *head, int64_t width, const float *cos, const float *sin) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float left = widen(head[i]), right = widen(head[half + i]);
        head[i] = narrow(left * cos[i] - right * sin[i]);
        head[half + i] = narrow(right * cos[half + i] + left * sin[half + i]);
    }
}

/* Keys and values of all rows into the cache, then the wanted rows' queries over it, head by head. */
static void attention(const Decoder *decoder, int64_t layer, const Desk *desk, const Cache *cache, const Pass *pass,
                      int64_t first, int64_t end, Blackboard board, Share share) {
    int64_t width = decoder->head_width, group = decoder->heads / decoder->kv_heads;
    int64_t keys_bytes = cache->slots * width * 2, values_bytes = cache->slots * up(width, BLOCK) * 2;
    for (int64_t head = first_of(share, decoder->kv_heads); head < end_of(share, decoder->kv_heads); head++) {
        int64_t place = layer * decoder->kv_heads + head;
        Memory memory = {cache->keys + place * keys_bytes, cache->values + place * values_bytes, cache->slots, width};
        for (int64_t m = 0; m < pass->rows; m++) {
            bf16 *row = desk->qkv + m * desk->qkv_pitch;
            bf16 *key = row + decoder->width + head * width, *value = key + decoder->kv_heads * width;
            const float *cos = cache->cos + (pass->start + m) * width, *sin = cache->sin + (pass->start + m) * width;
            rotate(key, width, cos, sin);
            for (int64_t i = 0; i < group && m >= first && m < end; i++)
                rotate(row + (head * group + i) * width, width, cos, sin);
            remember(&memory, pass->start + m, key, value);
        }
        for (int64_t i = head * group; i < (head + 1) * group; i++)
            attend(&memory, desk->qkv + first * desk->qkv_pitch + i * width, desk->qkv_pitch, end - first,
                   pass->start + first + 1, 1, board, desk->mixed + first * desk->pitch + i * width, desk->pitch);
    }
}

static void gate(const bf16 *gate_up, int64_t width, bf16 *out) {
    for (int64_t i = 0; i < width; i++)
        out[i] = narrow(rounded(silu(widen(gate_up[i]))) * widen(gate_up[width + i]));
}

static Bench bench_at(uint8_t *own) {
    Bench bench = {own, (float *)(own + PIECE * BLOCK * sizeof(bf16))};
    return bench;
}

/* in (rows, width) -> out (wanted rows, width). A thread reads its share of the rows before it meets the others. */
static void pass_layers(const Decoder *decoder, const Desk *desk, const Cache *cache, const Pass *pass, const bf16 *in,
                        bf16 *out, Bench bench, Share share) {
    int64_t width = decoder->width, pitch = desk->pitch, slots = cache->slots;
    const Rounded *whole = &desk->whole;
    Blackboard board = {bench.sums, (bf16 *)(bench.sums + TILE * slots)};
    for (int64_t m = first_of(share, pass->rows); m < end_of(share, pass->rows); m++)
        memcpy(desk->x + m * pitch, in + m * width, (size_t)width * sizeof *in);
    for (int64_t l = 0; l < decoder->layers; l++) {
        const Layer *layer = decoder->layer + l;
        int last = l == decoder->layers - 1;
        int64_t first = last ? pass->wanted : 0, end = last ? pass->wanted_end : pass->rows, rows = end - first;
        bf16 *x = desk->x + first * pitch, *normed = desk->normed + first * pitch;
        const bf16 *mixed = desk->mixed + first * pitch;
        meet(share);
        norm_rows(decoder, desk->x, layer->input_norm, pass->rows, desk->normed, pitch, pitch, share);
        round_rows(&layer->qkv, pass, desk->normed, pitch, pass->rows, whole, share);
        meet(share);
        multiply(&layer->qkv, pass, desk->normed, pitch, pass->rows, desk->qkv, desk->qkv_pitch, STORE, whole, bench,
                 share);
        meet(share);
        attention(decoder, l, desk, cache, pass, first, end, board, share);
        meet(share);
        if (any_rounds(&layer->o_proj, pass)) {
            round_rows(&layer->o_proj, pass, mixed, pitch, rows, whole, share);
            meet(share);
        }
        multiply(&layer->o_proj, pass, mixed, pitch, rows, x, pitch, ADD, whole, bench, share);
        meet(share);
        norm_rows(decoder, x, layer->attention_norm, rows, normed, pitch, pitch, share);
        round_rows(&layer->gate_up, pass, normed, pitch, rows, whole, share);
        meet(share);
        multiply(&layer->gate_up, pass, normed, pitch, rows, desk->gate_up, desk->gate_up_pitch, STORE, whole, bench,
                 share);
        meet(share);
        for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
            gate(desk->gate_up + m * desk->gate_up_pitch, decoder->mlp_width, desk->hidden + m * desk->hidden_pitch);
        round_rows(&layer->down_proj, pass, desk->hidden, desk->hidden_pitch, rows, whole, share);
        meet(share);
        multiply(&layer->down_proj, pass, desk->hidden, desk->hidden_pitch, rows, x, pitch, ADD, whole, bench, share);
    }
    meet(share);
    int64_t wanted = pass->wanted_end - pass->wanted;
    norm_rows(decoder, desk->x + pass->wanted * pitch, decoder->norm, wanted, out, pitch, width, share);
    meet(share); /* the next pass may begin at once */
}

/* The place of the largest value, the first of equals, and its lead over the second: NaN where a value is not finite. */
static int32_t lead_of(const bf16 *values, int64_t count, float *lead) {
    float first = -INFINITY, second = -INFINITY;
    int32_t at = 0, odd = 0;
    for (int64_t i = 0; i < count; i++) {
        float value = widen(values[i]);
        odd |= (values[i] & 0x7f80) == 0x7f80;
        if (value > first) second = first, first = value, at = (int32_t)i;
        else if (value > second) second = value;
    }
    *lead = odd ? NAN : first - second;
    return at;
}

/* Functions with a `team`, which began as zeros, are called by each of `members` threads; one member needs no team. */

void edge_vla_decode(const Decoder *decoder, const Desk *desk, const Cache *cache, const Pass *pass, const bf16 *in,
                     bf16 *out, Team *team, int64_t member, int64_t members) {
    Share share = {team, member, members};
    pass_layers(decoder, desk, cache, pass, in, out, bench_at(desk->own + member * desk->own_bytes), share);
}

/* The best bin behind each of the `given` (rows of them, the first at position `start`) and its lead, then of so many
 * `further`, each behind the one before: best and leads (rows + further).
 */
void edge_vla_follow(const Decoder *decoder, const Desk *desk, const Cache *cache, const Actions *actions,
                     const int32_t *given, int64_t rows, int64_t start, int64_t further, int32_t *best, float *leads,
                     Team *team, int64_t member, int64_t members) {
    Share share = {team, member, members};
    Bench bench = bench_at(desk->own + member * desk->own_bytes);
    int64_t width = decoder->width, outer = actions->head.outer;
    for (;;) {
        Pass pass = {rows, start, 0, rows};
        for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
            memcpy(actions->rows + m * width, actions->embedding + given[m] * width, (size_t)width * sizeof(bf16));
        pass_layers(decoder, desk, cache, &pass, actions->rows, actions->hidden, bench, share);
        product(&actions->head, actions->hidden, width, rows, actions->logits, outer, STORE, 0, bench, share);
        meet(share);
        for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
            best[m] = lead_of(actions->logits + m * outer, actions->bins, leads + m);
        meet(share);
        if (further-- == 0) return;
        start += rows, given = best + rows - 1, best += rows, leads += rows, rows = 1;
    }
}

/* x (rows, inner) -> out (rows, outer), on one thread; `own`: PIECE lines of 64, then rows of 64 floats. `whole` is room
 * for the rows if the weight rounds them, else none.
 */
void edge_vla_multiply(const Matrix *weight, const bf16 *x, int64_t rows, bf16 *out, uint8_t *own,
                       const Rounded *whole) {
    Bench bench = bench_at(own);
    Share share = {0, 0, 1};
    for (int64_t m = 0; m < rows && whole; m++) round_row(x + m * weight->inner, weight->inner, whole, m);
    if (whole) product_whole(weight, whole, rows, out, weight->outer, STORE, bench, share);
    else product(weight, x, weight->inner, rows, out, weight->outer, STORE, 0, bench, share);
}

/* values: rows of `count`, `width` apart -> `lead_of` each. */
void edge_vla_lead(const bf16 *values, int64_t rows, int64_t count, int64_t width, int32_t *best, float *leads) {
    for (int64_t m = 0; m < rows; m++) best[m] = lead_of(values + m * width, count, leads + m);
}

int edge_vla_instructions(void) { return EDGE_VLA_INSTRUCTIONS; }
