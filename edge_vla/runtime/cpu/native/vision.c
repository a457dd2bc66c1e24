/* One or two vision transformers and the projector: pixel values in, image embeddings out.
 *
 * Rounds to bf16 where torch's operators do.
 */
#include "attention.h"

/* out[i] = (x[i] - mean) / deviation weight[i] + bias[i], for one row. */
static void layer_norm(const bf16 *x, const bf16 *weight, const bf16 *bias, int64_t width, float eps, bf16 *out) {
    float mean = sum_of(x, width) / (float)width;
    float scale = 1.0f / sqrtf(sum_of_squares(x, mean, width) / (float)width + eps);
    for (int64_t i = 0; i < width; i++)
        out[i] = to_bf16(fused((to_float(x[i]) - mean) * scale, to_float(weight[i]), to_float(bias[i])));
}

/* This thread's range of ws->x [rows, width] -> ws->normed [rows, width]. */
static void norm_rows(const Tower *tower, const VisionWorkspace *ws, const bf16 *weight, const bf16 *bias, int64_t rows,
                      Thread thread) {
    for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
        layer_norm(ws->x + m * ws->pitch, weight, bias, tower->width, (float)tower->norm_eps,
                   ws->normed + m * ws->pitch);
}

/* pixels [3, image, image] -> ws->patches [patches, 3 patch_size^2], and ws->x = prefix rows, then positions. */
static void cut_patches(const Tower *tower, const VisionWorkspace *ws, const bf16 *pixels, int64_t image,
                        Thread thread) {
    int64_t grid = tower->grid, patch_size = tower->patch_size, width = tower->width, patches = grid * grid;
    for (int64_t p = range_begin(thread, patches); p < range_end(thread, patches); p++) {
        const bf16 *corner = pixels + p / grid * patch_size * image + p % grid * patch_size;
        bf16 *row = ws->patches + p * ws->patches_pitch;
        for (int64_t channel = 0; channel < 3; channel++)
            for (int64_t y = 0; y < patch_size; y++, row += patch_size)
                memcpy(row, corner + (channel * image + y) * image, (size_t)patch_size * sizeof *row);
        memcpy(ws->x + (tower->prefix + p) * ws->pitch, tower->positions + p * width, (size_t)width * sizeof(bf16));
    }
    for (int64_t m = range_begin(thread, tower->prefix); m < range_end(thread, tower->prefix); m++)
        memcpy(ws->x + m * ws->pitch, tower->prefix_rows + m * width, (size_t)width * sizeof(bf16));
}

/* ws->qkv [rows, 3 width] -> ws->context [rows, width], this thread's range of the heads. */
static void attention(const Tower *tower, const VisionWorkspace *ws, int64_t rows, uint8_t *memory, Thread thread) {
    int64_t width = tower->width / tower->heads;
    HeadCache kv = {memory, memory + ws->slots * width * 2, ws->slots, width};
    float *scores = (float *)(kv.values + ws->slots * round_up(width, BLOCK) * 2);
    AttentionScratch scratch = {scores, (bf16 *)(scores + TILE * ws->slots)};
    memset(kv.values, 0, (size_t)(ws->slots * round_up(width, BLOCK)) * sizeof(bf16)); /* slots beyond the rows */
    for (int64_t head = range_begin(thread, tower->heads); head < range_end(thread, tower->heads); head++) {
        const bf16 *query = ws->qkv + head * width;
        for (int64_t m = 0; m < rows; m++) {
            const bf16 *key = query + m * ws->qkv_pitch + tower->width;
            append_kv(&kv, m, key, key + tower->width);
        }
        attend(&kv, query, ws->qkv_pitch, rows, rows, 0, scratch, ws->context + head * width, ws->pitch);
    }
}

/* `gemm` of rows that all threads have made; where `w` takes integers, they make those first. */
static void product(const Matrix *w, const VisionWorkspace *ws, const bf16 *x, int64_t pitch, int64_t rows, bf16 *out,
                    int64_t out_pitch, Epilogue epilogue, const bf16 *out_scale, Scratch scratch, Thread thread) {
    const IntRows *integers = planes_of(w, 1) ? &ws->rows16 : 0;
    if (integers) {
        for (int64_t m = range_begin(thread, rows); m < range_end(thread, rows); m++)
            quantise_row(x + m * pitch, w->k, integers, m);
        wait_for_all(thread);
    }
    gemm(w, x, pitch, integers, rows, out, out_pitch, epilogue, out_scale, scratch, thread);
}

/* pixels [3, image, image] -> features [patches, width]. */
static void forward(const Tower *tower, const VisionWorkspace *ws, const bf16 *pixels, int64_t image, bf16 *features,
                    uint8_t *memory, Scratch scratch, Thread thread) {
    int64_t patches = tower->grid * tower->grid, rows = tower->prefix + patches, pitch = ws->pitch;
    cut_patches(tower, ws, pixels, image, thread);
    wait_for_all(thread);
    product(&tower->patch, ws, ws->patches, ws->patches_pitch, patches, ws->x + tower->prefix * pitch, pitch, ADD, 0, scratch,
         thread);
    for (const TowerLayer *layer = tower->layer; layer < tower->layer + tower->layers; layer++) {
        wait_for_all(thread);
        norm_rows(tower, ws, layer->norm1, layer->norm1_bias, rows, thread);
        wait_for_all(thread);
        product(&layer->qkv, ws, ws->normed, pitch, rows, ws->qkv, ws->qkv_pitch, STORE, 0, scratch, thread);
        wait_for_all(thread);
        attention(tower, ws, rows, memory, thread);
        wait_for_all(thread);
        product(&layer->proj, ws, ws->context, pitch, rows, ws->x, pitch, ADD, layer->layer_scale1, scratch, thread);
        wait_for_all(thread);
        norm_rows(tower, ws, layer->norm2, layer->norm2_bias, rows, thread);
        wait_for_all(thread);
        product(&layer->fc1, ws, ws->normed, pitch, rows, ws->hidden, ws->hidden_pitch, GELU, 0, scratch, thread);
        wait_for_all(thread);
        product(&layer->fc2, ws, ws->hidden, ws->hidden_pitch, rows, ws->x, pitch, ADD, layer->layer_scale2, scratch, thread);
    }
    wait_for_all(thread);
    for (int64_t p = range_begin(thread, patches); p < range_end(thread, patches); p++)
        memcpy(features + p * ws->features_pitch, ws->x + (tower->prefix + p) * pitch,
               (size_t)tower->width * sizeof(bf16));
    wait_for_all(thread);
}

/* pixels [3 towers, image, image] -> out [patches, width of the decoder]. Called by each of `count` threads. */
void edge_vla_vision(const Vision *vision, const VisionWorkspace *ws, const bf16 *pixels, int64_t image, bf16 *out,
                     int64_t width, Barrier *barrier, int64_t index, int64_t count) {
    Thread thread = {barrier, index, count};
    uint8_t *memory = ws->scratch + index * ws->scratch_bytes;
    Scratch scratch = gemm_scratch(memory);
    bf16 *features = ws->features;
    for (int64_t t = 0; t < vision->towers; features += vision->tower[t++].width)
        forward(vision->tower + t, ws, pixels + 3 * t * image * image, image, features, memory, scratch, thread);
    const bf16 *from = ws->features;
    int64_t patches = vision->tower->grid * vision->tower->grid, pitch = ws->features_pitch;
    for (int64_t i = 0; i < vision->linears; i++) {
        const Matrix *w = vision->linear + i;
        Epilogue epilogue = i + 1 < vision->linears ? GELU : STORE;
        product(w, ws, from, pitch, patches, ws->projected[i], w->n, epilogue, 0, scratch, thread);
        from = ws->projected[i];
        pitch = w->n;
        wait_for_all(thread);
    }
    for (int64_t p = range_begin(thread, patches); p < range_end(thread, patches); p++)
        memcpy(out + p * width, from + p * pitch, (size_t)width * sizeof(bf16));
    wait_for_all(thread); /* the next call may begin at once */
}
