/* Vision transformers side by side, and the projector: pixel values in, image embeddings out.
 *
 * Roundings to bfloat16 are where torch's operators have them.
 */
#include "attention.h"

typedef struct {
    Matrix qkv, proj, fc1, fc2;
    const bf16 *norm1, *norm1_bias, *norm2, *norm2_bias; /* (width) */
    const bf16 *gain1, *gain2;                           /* (width padded); NULL where a tower has none */
} Layer;

typedef struct {
    int64_t width, heads, prefix, grid, side, layers; /* side of a patch; `grid` patches make a side of the image */
    double norm_eps;
    Matrix patch;
    const bf16 *first;     /* (prefix, width) rows before the patches */
    const bf16 *positions; /* (patches, width) */
    const Layer *layer;
} Tower;

typedef struct {
    int64_t towers, linears; /* of the projector */
    const Tower *tower;
    const Matrix *linear;
} Vision;

/* Rows lie `*_pitch` apart; what lies beyond a row's numbers is zero. */
typedef struct {
    bf16 *x, *normed, *qkv, *mixed, *hidden, *patches, *features, *projected[3];
    int64_t pitch, qkv_pitch, hidden_pitch, patches_pitch, features_pitch;
    int64_t slots;
    uint8_t *own; /* each thread's `own_bytes` */
    int64_t own_bytes;
} Desk;

static void layer_norm(const bf16 *x, const bf16 *weight, const bf16 *bias, int64_t width, float eps, bf16 *out) {
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += widen(x[i]);
    float mean = sum / (float)width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
    float scale = 1.0f / sqrtf(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) out[i] = narrow((widen(x[i]) - mean) * scale * widen(weight[i]) + widen(bias[i]));
}

static void norm_rows(const Tower *tower, const Desk *desk, const bf16 *weight, const bf16 *bias, int64_t rows,
                      Share share) {
    for (int64_t m = first_of(share, rows); m < end_of(share, rows); m++)
        layer_norm(desk->x + m * desk->pitch, weight, bias, tower->width, (float)tower->norm_eps,
                   desk->normed + m * desk->pitch);
}

/* Patches as rows of (channel, y, x); the rows that they will be added to: what comes first, then positions. */
static void lay_out(const Tower *tower, const Desk *desk, const bf16 *pixels, int64_t image, Share share) {
    int64_t grid = tower->grid, side = tower->side, width = tower->width, patches = grid * grid;
    for (int64_t p = first_of(share, patches); p < end_of(share, patches); p++) {
        const bf16 *corner = pixels + p / grid * side * image + p % grid * side;
        bf16 *row = desk->patches + p * desk->patches_pitch;
        for (int64_t channel = 0; channel < 3; channel++)
            for (int64_t y = 0; y < side; y++, row += side)
                memcpy(row, corner + (channel * image + y) * image, (size_t)side * sizeof *row);
        memcpy(desk->x + (tower->prefix + p) * desk->pitch, tower->positions + p * width, (size_t)width * sizeof(bf16));
    }
    for (int64_t m = first_of(share, tower->prefix); m < end_of(share, tower->prefix); m++)
        memcpy(desk->x + m * desk->pitch, tower->first + m * width, (size_t)width * sizeof(bf16));
}

static void attention(const Tower *tower, const Desk *desk, int64_t rows, uint8_t *own, Share share) {
    int64_t width = tower->width / tower->heads;
    Memory memory = {own, own + desk->slots * width * 2, desk->slots, width};
    float *scores = (float *)(memory.values + desk->slots * up(width, BLOCK) * 2);
    Blackboard board = {scores, (bf16 *)(scores + TILE * desk->slots)};
    memset(memory.values, 0, (size_t)(desk->slots * up(width, BLOCK)) * sizeof(bf16)); /* for slots beyond the rows */
    for (int64_t head = first_of(share, tower->heads); head < end_of(share, tower->heads); head++) {
        const bf16 *query = desk->qkv + head * width;
        for (int64_t m = 0; m < rows; m++) {
            const bf16 *key = query + m * desk->qkv_pitch + tower->width;
            remember(&memory, m, key, key + tower->width);
        }
        attend(&memory, query, desk->qkv_pitch, rows, rows, 0, board, desk->mixed + head * width, desk->pitch);
    }
}

static void see(const Tower *tower, const Desk *desk, const bf16 *pixels, int64_t image, bf16 *features,
                uint8_t *own, Bench bench, Share share) {
    int64_t patches = tower->grid * tower->grid, rows = tower->prefix + patches, pitch = desk->pitch;
    lay_out(tower, desk, pixels, image, share);
    meet(share);
    product(&tower->patch, desk->patches, desk->patches_pitch, patches, desk->x + tower->prefix * pitch, pitch, ADD, 0,
            bench, share);
    for (const Layer *layer = tower->layer; layer < tower->layer + tower->layers; layer++) {
        meet(share);
        norm_rows(tower, desk, layer->norm1, layer->norm1_bias, rows, share);
        meet(share);
        product(&layer->qkv, desk->normed, pitch, rows, desk->qkv, desk->qkv_pitch, STORE, 0, bench, share);
        meet(share);
        attention(tower, desk, rows, own, share);
        meet(share);
        product(&layer->proj, desk->mixed, pitch, rows, desk->x, pitch, ADD, layer->gain1, bench, share);
        meet(share);
        norm_rows(tower, desk, layer->norm2, layer->norm2_bias, rows, share);
        meet(share);
        product(&layer->fc1, desk->normed, pitch, rows, desk->hidden, desk->hidden_pitch, GELU, 0, bench, share);
        meet(share);
        product(&layer->fc2, desk->hidden, desk->hidden_pitch, rows, desk->x, pitch, ADD, layer->gain2, bench, share);
    }
    meet(share);
    for (int64_t p = first_of(share, patches); p < end_of(share, patches); p++)
        memcpy(features + p * desk->features_pitch, desk->x + (tower->prefix + p) * pitch,
               (size_t)tower->width * sizeof(bf16));
    meet(share);
}

/* pixels (3 x towers, image, image) -> out (patches, decoder width). Called by each of `members` threads. */
void edge_vla_see(const Vision *vision, const Desk *desk, const bf16 *pixels, int64_t image, bf16 *out, int64_t width,
                  Team *team, int64_t member, int64_t members) {
    Share share = {team, member, members};
    uint8_t *own = desk->own + member * desk->own_bytes;
    Bench bench = {own, (float *)(own + PIECE * BLOCK * sizeof(bf16))};
    bf16 *features = desk->features;
    for (int64_t t = 0; t < vision->towers; features += vision->tower[t++].width)
        see(vision->tower + t, desk, pixels + 3 * t * image * image, image, features, own, bench, share);
    const bf16 *from = desk->features;
    int64_t patches = vision->tower->grid * vision->tower->grid, pitch = desk->features_pitch;
    for (int64_t i = 0; i < vision->linears; i++) {
        const Matrix *w = vision->linear + i;
        product(w, from, pitch, patches, desk->projected[i], w->outer, i + 1 < vision->linears ? GELU : STORE, 0, bench,
                share);
        from = desk->projected[i];
        pitch = w->outer;
        meet(share);
    }
    for (int64_t p = first_of(share, patches); p < end_of(share, patches); p++)
        memcpy(out + p * width, from + p * pitch, (size_t)width * sizeof(bf16));
    meet(share); /* the team may be called again at once */
}
