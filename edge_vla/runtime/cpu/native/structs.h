/* The structures that Python fills: `structs.py` declares the same ones in the same order and compares their sizes. */
#ifndef EDGE_VLA_STRUCTS
#define EDGE_VLA_STRUCTS

#include "scalar.h"

/* When a gemm takes its inputs in 8 bits, one scale a row. Where it takes integers, they have 16 bits else. */
typedef enum { NEVER, IN_PREFILL, ALWAYS } Int8Inputs;

/* A linear's weight [n, k] and bias [n]. n is padded to 64s and k to fours, with zeros. */
typedef struct {
    const uint8_t *codes; /* lines: see `lanes.h` */
    const bf16 *scales;   /* [n / 64, k / group, 64]; NULL where codes are bfloat16 */
    const bf16 *bias;     /* NULL if there is none */
    int64_t n, k, group, bits;
    int64_t int8_inputs; /* an `Int8Inputs` */
} Matrix;

/* Activations [m, k] as integers, one scale a row: see `rows.h`. */
typedef struct {
    int8_t *codes;       /* [m, pitch]: one plane, or the high and then the low one */
    int32_t *prefix_sum; /* [spans + 1, prefix_pitch]: of each row's codes before a SPAN */
    float *scales;       /* [m] */
    int64_t pitch, prefix_pitch, planes;
} IntRows;

/* Up to three matrices of one input, with their outputs concatenated. */
typedef struct {
    Matrix part[3];
    int64_t parts;
} Linear;

typedef struct {
    Linear qkv, o_proj, gate_up, down_proj;
    const bf16 *input_norm, *attention_norm; /* [width] */
} DecoderLayer;

typedef struct {
    int64_t layers, width, mlp_width, heads, kv_heads, head_width;
    double norm_eps;
    const DecoderLayer *layer;
    const bf16 *norm; /* [width] */
} Decoder;

/* Activations of one pass. Rows lie `*_pitch` apart, a multiple of 64; the padding is zero. */
typedef struct {
    bf16 *x, *normed, *qkv, *context, *gate_up, *hidden;
    int64_t pitch, qkv_pitch, gate_up_pitch, hidden_pitch;
    uint8_t *scratch; /* `scratch_bytes` for each thread */
    int64_t scratch_bytes;
    IntRows rows8, rows16; /* inputs of the next gemm as integers, where one takes such */
} DecoderWorkspace;

/* The KV cache: a `HeadCache` of each layer and KV head, and the rotary tables. */
typedef struct {
    uint8_t *keys, *values;
    int64_t slots;
    const float *cos, *sin; /* [slots, head_width] */
} Cache;

/* Rows of one pass, the first at position `start`; hidden states of rows `wanted` .. `wanted_end` - 1 are returned.
 * `prefill`: whether rows are 8 bits where a prefill's are. */
typedef struct {
    int64_t rows, start, wanted, wanted_end, prefill;
} Pass;

/* Embeddings and logits of action bins, and the buffers of a pass over m bins. */
typedef struct {
    Matrix head;                  /* [bins, width] */
    const bf16 *embedding;        /* [bins, width] */
    bf16 *rows, *hidden, *logits; /* [m, width], [m, width], [m, head.n] */
    int64_t bins;
} ActionHead;

typedef struct {
    Matrix qkv, proj, fc1, fc2;
    const bf16 *norm1, *norm1_bias, *norm2, *norm2_bias; /* [width] */
    const bf16 *layer_scale1, *layer_scale2;             /* [width, padded]; NULL where a tower has none */
} TowerLayer;

/* A vision transformer over grid x grid patches of patch_size x patch_size pixels. */
typedef struct {
    int64_t width, heads, prefix, grid, patch_size, layers;
    double norm_eps;
    Matrix patch;
    const bf16 *prefix_rows; /* [prefix, width]: class token and registers */
    const bf16 *positions;   /* [patches, width] */
    const TowerLayer *layer;
} Tower;

typedef struct {
    int64_t towers, linears; /* linears of the projector */
    const Tower *tower;
    const Matrix *linear;
} Vision;

/* Activations of one image, laid out as in `DecoderWorkspace`. */
typedef struct {
    bf16 *x, *normed, *qkv, *context, *hidden, *patches, *features, *projected[3];
    int64_t pitch, qkv_pitch, hidden_pitch, patches_pitch, features_pitch;
    int64_t slots;
    uint8_t *scratch;
    int64_t scratch_bytes;
    IntRows rows16;
} VisionWorkspace;

#endif
