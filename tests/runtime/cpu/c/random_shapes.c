/* The C engine on random weights, inputs and shapes, without Python: each line of output is a case and a hash of its bits.
 *
 *     random_shapes SEED CASES
 *
 * Built with a sanitizer it looks for what no result shows; run under an emulator it compares instruction sets. Buffers
 * are exactly as long as `layout.py`, `decoder.py` and `vision.py` make them, so that one byte too far is seen.
 */
#include <stdio.h>
#include <stdlib.h>

#include "gemm.h"

extern const int32_t edge_vla_zero_point8;
void edge_vla_gemm(const Matrix *, const bf16 *, int64_t, bf16 *, uint8_t *, const IntRows *);
void edge_vla_decode(const Decoder *, const DecoderWorkspace *, const Cache *, const Pass *, const bf16 *, bf16 *,
                     Barrier *, int64_t, int64_t);
void edge_vla_decode_steps(const Decoder *, const DecoderWorkspace *, const Cache *, const ActionHead *,
                           const int32_t *, int64_t, int64_t, int64_t, int32_t *, float *, Barrier *, int64_t, int64_t);
void edge_vla_vision(const Vision *, const VisionWorkspace *, const bf16 *, int64_t, bf16 *, int64_t, Barrier *,
                     int64_t, int64_t);

#define MOST_TILE 6 /* `TILE` of layout.py */
#define MOST_ALLOCATIONS 4096

static uint64_t state;
static void *allocated[MOST_ALLOCATIONS];
static int allocations;

static uint32_t next(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 16);
}
static int64_t below(int64_t count) { return next() % count; }
static int64_t multiple(int64_t of, int64_t most) { return of * (1 + below(most)); }
static int64_t padded(int64_t number, int64_t to) { return (number + to - 1) / to * to; }

/* Zeroed, and freed by `release`. */
static void *allocate(int64_t bytes) {
    void *memory = 0;
    if (allocations == MOST_ALLOCATIONS || posix_memalign(&memory, 64, (size_t)(bytes ? bytes : 1))) abort();
    memset(memory, 0, (size_t)bytes);
    return allocated[allocations++] = memory;
}
static void release(void) {
    while (allocations) free(allocated[--allocations]);
}

/* Numbers of one sign of zero and sizes of four powers of two around `size`. */
static bf16 *numbers(int64_t count, float size) {
    bf16 *made = allocate(count * 2);
    for (int64_t i = 0; i < count; i++) made[i] = to_bf16(((float)below(65536) / 32768 - 1) * size);
    return made;
}

static IntRows int_rows(int64_t rows, int64_t k, int64_t planes) {
    int64_t pitch = (padded(k, BLOCK) + BLOCK) * planes, spans = (k + SPAN - 1) / SPAN + 1;
    IntRows made = {allocate(rows * pitch), allocate(rows * spans * 4), allocate(rows * 4), pitch, rows, planes};
    return made;
}

static int64_t random_group(int64_t k) {
    int64_t group = (int64_t)32 << below(4);
    while (k % group) group /= 2;
    return group;
}

/* A weight [n, k]: k in fours, for 4 bits in 32s. */
static Matrix random_matrix(int64_t bits, int64_t n, int64_t k, int with_bias, int64_t int8_inputs) {
    int64_t outputs = padded(n, BLOCK), count = outputs * k * bits / 8;
    Matrix made = {0, 0, 0, outputs, k, bits == 4 ? random_group(k) : k, bits, bits == 16 ? NEVER : int8_inputs};
    if (bits == 16) made.codes = (const uint8_t *)numbers(outputs * k, 0.1f);
    else {
        uint8_t *codes = allocate(count);
        for (int64_t i = 0; i < count; i++) {
            int64_t code = bits == 4 ? below(256) : below(255) - 127;
            codes[i] = (uint8_t)(bits == 8 ? code ^ edge_vla_zero_point8 : code);
        }
        made.codes = codes;
        bf16 *scales = numbers(outputs * k / made.group, 0.001f);
        made.scales = scales;
    }
    if (with_bias) made.bias = numbers(outputs, 0.1f);
    return made;
}

static void report(const char *what, const void *bytes, int64_t count) {
    uint64_t hash = 1469598103934665603u;
    for (int64_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 1099511628211u;
    printf("%s %016llx\n", what, (unsigned long long)hash);
}

static void check_gemm(void) {
    static const int64_t all_bits[] = {16, 8, 4};
    int64_t bits = all_bits[below(3)], n = 1 + below(200), k = bits == 4 ? multiple(32, 24) : multiple(4, 150);
    int64_t rows = 1 + below(30), int8_inputs = below(2) ? NEVER : ALWAYS;
    Matrix weight = random_matrix(bits, n, k, (int)below(2), int8_inputs);
    int planes = planes_of(&weight, 0);
    IntRows integers = int_rows(rows, k, planes ? planes : 1);
    bf16 *x = numbers(rows * k, 3.0f), *out = allocate(rows * weight.n * 2);
    edge_vla_gemm(&weight, x, rows, out, allocate(PIECE * BLOCK * 2 + rows * BLOCK * 4), planes ? &integers : 0);
    char what[160];
    snprintf(what, sizeof what, "gemm %lld bits %lld x %lld group %lld planes %d rows %lld", (long long)bits,
             (long long)n, (long long)k, (long long)weight.group, planes, (long long)rows);
    report(what, out, rows * weight.n * 2);
}

static Linear random_linear(int64_t bits, const int64_t *n, int parts, int64_t k, int64_t int8_inputs) {
    Linear made = {.parts = parts};
    for (int i = 0; i < parts; i++) made.part[i] = random_matrix(bits, n[i], k, 0, int8_inputs);
    return made;
}

static Decoder random_decoder(int64_t bits, int64_t int8_inputs) {
    int64_t kv_heads = 1 + below(3), heads = kv_heads * (1 + below(3)), head_width = multiple(4, 9);
    while (bits == 4 && heads * head_width % 32) head_width += 4;
    int64_t width = heads * head_width, kv_width = kv_heads * head_width, mlp_width = multiple(bits == 4 ? 32 : 4, 6);
    Decoder made = {1 + below(2), width, mlp_width, heads, kv_heads, head_width, 1e-5, 0, numbers(width, 1.0f)};
    DecoderLayer *layers = allocate(made.layers * (int64_t)sizeof *layers);
    for (int64_t l = 0; l < made.layers; l++) {
        int64_t qkv = width + 2 * kv_width, gate_up = 2 * mlp_width;
        layers[l].qkv = random_linear(bits, &qkv, 1, width, int8_inputs);
        layers[l].o_proj = random_linear(bits, &width, 1, width, int8_inputs);
        layers[l].gate_up = random_linear(bits, &gate_up, 1, width, int8_inputs);
        layers[l].down_proj = random_linear(bits, &width, 1, mlp_width, int8_inputs);
        layers[l].input_norm = numbers(width, 1.0f);
        layers[l].attention_norm = numbers(width, 1.0f);
    }
    made.layer = layers;
    return made;
}

static Cache random_cache(const Decoder *decoder, int64_t length) {
    int64_t slots = padded(length, BLOCK), width = decoder->head_width, places = decoder->layers * decoder->kv_heads;
    float *cosines = allocate(slots * width * 4), *sines = allocate(slots * width * 4);
    for (int64_t i = 0; i < slots * width; i++) cosines[i] = round_bf16(0.7f), sines[i] = round_bf16(0.6f);
    Cache made = {allocate(places * slots * width * 2), allocate(places * slots * padded(width, BLOCK) * 2), slots,
                  cosines, sines};
    return made;
}

static DecoderWorkspace random_workspace(const Decoder *decoder, int64_t rows, int64_t slots) {
    int64_t pitch = padded(decoder->width, BLOCK), hidden = padded(decoder->mlp_width, BLOCK);
    int64_t qkv = padded(decoder->width + 2 * decoder->kv_heads * decoder->head_width, BLOCK);
    int64_t gate_up = padded(2 * decoder->mlp_width, BLOCK), widest = pitch > hidden ? pitch : hidden;
    int64_t scratch = PIECE * BLOCK * 2, product = scratch + rows * BLOCK * 4, attention = scratch + MOST_TILE * slots * 6;
    scratch = padded(product > attention ? product : attention, BLOCK);
    DecoderWorkspace made = {
        allocate(rows * pitch * 2), allocate(rows * pitch * 2), allocate(rows * qkv * 2), allocate(rows * pitch * 2),
        allocate(rows * gate_up * 2), allocate(rows * hidden * 2), pitch, qkv, gate_up, hidden, allocate(scratch),
        scratch, int_rows(rows, widest, 1), int_rows(rows, widest, 2),
    };
    return made;
}

static void check_decoder(void) {
    static const int64_t all_bits[] = {16, 8, 4};
    int64_t bits = all_bits[below(3)], int8_inputs = below(3), prompt = 1 + below(70), bins = 1 + below(100);
    Decoder decoder = random_decoder(bits, int8_inputs);
    int64_t further = below(4), given_rows = 1 + below(3), width = decoder.width, total = given_rows + further;
    Cache cache = random_cache(&decoder, prompt + total);
    DecoderWorkspace ws = random_workspace(&decoder, prompt > given_rows ? prompt : given_rows, cache.slots);
    Pass pass = {prompt, 0, below(prompt), prompt};
    bf16 *out = allocate(prompt * width * 2);
    edge_vla_decode(&decoder, &ws, &cache, &pass, numbers(prompt * width, 1.0f), out, 0, 0, 1);
    char what[160];
    snprintf(what, sizeof what, "decoder %lld bits int8 %lld width %lld heads %lld/%lld mlp %lld prompt %lld",
             (long long)bits, (long long)int8_inputs, (long long)width, (long long)decoder.heads,
             (long long)decoder.kv_heads, (long long)decoder.mlp_width, (long long)prompt);
    report(what, out, (prompt - pass.wanted) * width * 2);
    Matrix head = random_matrix(16, bins, width, 0, NEVER);
    ActionHead actions = {head, numbers(bins * width, 1.0f), allocate(total * width * 2), allocate(total * width * 2),
                          allocate(total * head.n * 2), bins};
    int32_t *given = allocate(given_rows * 4), *best = allocate(total * 4);
    float *margins = allocate(total * 4);
    for (int64_t i = 0; i < given_rows; i++) given[i] = (int32_t)below(bins);
    edge_vla_decode_steps(&decoder, &ws, &cache, &actions, given, given_rows, prompt, further, best, margins, 0, 0, 1);
    report("  bins", best, total * 4);
    report("  margins", margins, total * 4);
}

static Tower random_tower(int64_t bits) {
    int64_t heads = 1 + below(4), width = heads * multiple(4, 8), mlp_width = multiple(4, 40);
    Tower made = {width, heads, below(3), 1 + below(5), 2 + below(4), 1 + below(2), 1e-6, {0}, 0, 0, 0};
    int64_t patch = padded(3 * made.patch_size * made.patch_size, STEP);
    made.patch = random_matrix(16, width, patch, 1, NEVER);
    made.prefix_rows = numbers(made.prefix * width, 1.0f);
    made.positions = numbers(made.grid * made.grid * width, 1.0f);
    TowerLayer *layers = allocate(made.layers * (int64_t)sizeof *layers);
    int scaled = (int)below(2);
    for (int64_t l = 0; l < made.layers; l++) {
        int64_t pitch = padded(width, BLOCK);
        TowerLayer layer = {
            random_matrix(bits, 3 * width, width, 1, NEVER), random_matrix(bits, width, width, 1, NEVER),
            random_matrix(bits, mlp_width, width, 1, NEVER), random_matrix(bits, width, mlp_width, 1, NEVER),
            numbers(pitch, 1.0f), numbers(pitch, 1.0f), numbers(pitch, 1.0f), numbers(pitch, 1.0f),
            scaled ? numbers(pitch, 1.0f) : 0, scaled ? numbers(pitch, 1.0f) : 0,
        };
        layers[l] = layer;
        made.layer = layers;
    }
    return made;
}

static VisionWorkspace vision_workspace(const Tower *tower, int64_t out_width) {
    int64_t patches = tower->grid * tower->grid, rows = tower->prefix + patches, width = tower->width;
    int64_t pitch = padded(width, BLOCK), qkv = padded(3 * width, BLOCK);
    int64_t hidden = padded(tower->layer->fc1.n, BLOCK), patch = tower->patch.k, head = width / tower->heads;
    int64_t slots = padded(rows, BLOCK), attention = slots * (head + padded(head, BLOCK)) * 2 + MOST_TILE * slots * 6;
    int64_t product = PIECE * BLOCK * 2 + rows * BLOCK * 4;
    int64_t scratch = padded(product > attention ? product : attention, BLOCK);
    VisionWorkspace made = {
        allocate(rows * pitch * 2), allocate(rows * pitch * 2), allocate(rows * qkv * 2), allocate(rows * pitch * 2),
        allocate(rows * hidden * 2), allocate(patches * patch * 2), allocate(patches * pitch * 2),
        {allocate(patches * padded(out_width, BLOCK) * 2), 0, 0}, pitch, qkv, hidden, patch, pitch, slots,
        allocate(scratch), scratch, int_rows(rows, pitch > hidden ? pitch : hidden, 2),
    };
    return made;
}

static void check_vision(void) {
    int64_t bits = below(2) ? 16 : 8, out_width = multiple(4, 40);
    Tower tower = random_tower(bits);
    Matrix projector = random_matrix(bits, out_width, tower.width, 1, NEVER);
    Vision vision = {1, 1, &tower, &projector};
    VisionWorkspace ws = vision_workspace(&tower, out_width);
    int64_t image = tower.grid * tower.patch_size, patches = tower.grid * tower.grid;
    bf16 *out = allocate(patches * out_width * 2);
    edge_vla_vision(&vision, &ws, numbers(3 * image * image, 1.0f), image, out, out_width, 0, 0, 1);
    char what[160];
    snprintf(what, sizeof what, "vision %lld bits width %lld heads %lld grid %lld prefix %lld", (long long)bits,
             (long long)tower.width, (long long)tower.heads, (long long)tower.grid, (long long)tower.prefix);
    report(what, out, patches * out_width * 2);
}

int main(int count, char **words) {
    if (count != 3) return fprintf(stderr, "usage: random_shapes SEED CASES\n"), 2;
    int64_t seed = atoll(words[1]), cases = atoll(words[2]);
    for (int64_t number = 0; number < cases; number++) {
        state = (uint64_t)(seed * 1000003 + number) * 0x9e3779b97f4a7c15u + 1;
        for (int i = 0; i < 8; i++) next();
        if (number % 4 < 2) check_gemm();
        else if (number % 4 == 2) check_decoder();
        else check_vision();
        release();
    }
    return 0;
}
