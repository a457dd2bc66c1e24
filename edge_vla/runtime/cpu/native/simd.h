/* The inner step of a GEMM on one weight line: 16 outputs x 2 inputs in bf16 (32 lanes), or 16 x 4 in int8 (64 bytes).
 *
 * A line holds the weights of 64 outputs and 4 inputs: for each 16 outputs 32 lanes of the first two inputs, then 32
 * of the other two (in 4 bits: low nibbles, then high nibbles). Lane 2r + j is output r, input j.
 * Two implementations, one interface: AVX-512 with BF16 and VNNI, and plain C for every other machine.
 */
#ifndef EDGE_VLA_SIMD
#define EDGE_VLA_SIMD

#include "scalar.h"

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 64  /* outputs of a line */
#define STEP 4    /* inputs of a line */
#define PARTS 4   /* of a line, 16 outputs each */
#define LANES 32
#define LINE(bits) (STEP * BLOCK * (bits) / 8)

#define ZERO_POINT(bits) (1 << ((bits) - 1)) /* added to a signed code makes it unsigned */

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && !defined(EDGE_VLA_PLAIN)
#include <immintrin.h>
#define EDGE_VLA_BF16_SIMD 1

typedef __m512bh Lanes;
typedef __m512 Acc; /* float32 [16] */

/* int8 [32] -> bf16 [32]. */
INLINE Lanes lanes_from_int8(const uint8_t *bytes) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(bytes + 16))));
    return _mm512_cvtne2ps_pbh(high, low);
}

/* int4 code -> bf16. The lookup takes five bits, of which the fifth belongs to the next code. */
static const bf16 levels[LANES] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
    0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
    0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
};

/* One part of a line -> its codes in bf16: inputs 0 and 1 of 16 outputs, then inputs 2 and 3. */
INLINE void unpack_lanes(const int bits, const uint8_t *line, int part, Lanes *first, Lanes *second) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    if (bits == 16) {
        *first = (Lanes)_mm512_loadu_si512(from);
        *second = (Lanes)_mm512_loadu_si512(from + 2 * LANES);
    } else if (bits == 8) {
        *first = lanes_from_int8(from);
        *second = lanes_from_int8(from + LANES);
    } else {
        __m512i table = _mm512_loadu_si512(levels);
        __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
        *first = (Lanes)_mm512_permutexvar_epi16(both, table);
        *second = (Lanes)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
    }
}

INLINE void store_lanes(uint8_t *to, Lanes lanes) { _mm512_storeu_si512(to, (__m512i)lanes); }

INLINE Acc zero_acc(void) { return _mm512_setzero_ps(); }

/* acc[r] += weights[r, 0] x[0] + weights[r, 1] x[1]. */
INLINE Acc dot_bf16(Acc acc, Lanes weights, const bf16 *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm512_dpbf16_ps(acc, weights, (Lanes)_mm512_set1_epi32(both));
}

/* to[r] += scale[r] (even[r] + odd[r]). */
INLINE void add_scaled_acc(float *to, Acc even, Acc odd, const float *scale) {
    __m512 sum = _mm512_add_ps(even, odd);
    _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_loadu_ps(scale), _mm512_loadu_ps(to)));
}

typedef __m512i Codes; /* uint8 [16, 4] */
typedef int32_t IntAcc __attribute__((vector_size(64)));

/* One part of a line -> its codes plus `ZERO_POINT(bits)`, the four inputs of an output side by side. */
INLINE Codes unpack_codes(const int bits, const uint8_t *line, int part) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    if (bits == 8) {
        __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + LANES)));
        return _mm512_xor_si512(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)), _mm512_set1_epi8(-128));
    }
    __m512i low = _mm512_and_si512(first, _mm512_set1_epi32(0x00000f0f));
    return _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi32(first, 12), _mm512_set1_epi32(0x0f0f0000)));
}

INLINE void store_codes(uint8_t *to, Codes bytes) { _mm512_storeu_si512(to, bytes); }
INLINE Codes load_codes(const uint8_t *from) { return _mm512_loadu_si512(from); }

INLINE IntAcc zero_int_acc(void) { return (IntAcc){0}; }

/* acc[r] += sum over four j of weights[r, j] x[j]. */
INLINE IntAcc dot_int8(IntAcc acc, Codes weights, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return (IntAcc)_mm512_dpbusd_epi32((__m512i)acc, weights, _mm512_set1_epi32(four));
}

INLINE void add_int_acc(int32_t *to, IntAcc acc) {
    _mm512_storeu_si512(to, _mm512_add_epi32((__m512i)acc, _mm512_loadu_si512(to)));
}

/* to[r] += scale[r] (acc[r] - correction). */
INLINE void add_scaled_int_acc(float *to, IntAcc acc, int32_t correction, const float *scale) {
    __m512 real = _mm512_cvtepi32_ps(_mm512_sub_epi32((__m512i)acc, _mm512_set1_epi32(correction)));
    _mm512_storeu_ps(to, _mm512_fmadd_ps(real, _mm512_loadu_ps(scale), _mm512_loadu_ps(to)));
}

#else
#define EDGE_VLA_BF16_SIMD 0

typedef struct { float at[LANES]; } Lanes;
typedef struct { float at[LANES]; } Acc;

INLINE void unpack_lanes(const int bits, const uint8_t *line, int part, Lanes *first, Lanes *second) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    for (int i = 0; i < LANES; i++) {
        if (bits == 16) {
            bf16 both[2];
            memcpy(both, from + 2 * i, 2);
            memcpy(both + 1, from + 2 * (LANES + i), 2);
            first->at[i] = to_float(both[0]);
            second->at[i] = to_float(both[1]);
        } else if (bits == 8) {
            first->at[i] = (float)(int8_t)from[i];
            second->at[i] = (float)(int8_t)from[LANES + i];
        } else {
            first->at[i] = (float)((from[i] & 15) - 8);
            second->at[i] = (float)((from[i] >> 4) - 8);
        }
    }
}

INLINE void store_lanes(uint8_t *to, Lanes lanes) {
    bf16 halves[LANES];
    for (int i = 0; i < LANES; i++) halves[i] = to_bf16(lanes.at[i]);
    memcpy(to, halves, sizeof halves);
}

INLINE Acc zero_acc(void) { return (Acc){{0}}; }

INLINE Acc dot_bf16(Acc acc, Lanes weights, const bf16 *x) {
    float two[2] = {to_float(x[0]), to_float(x[1])};
    for (int i = 0; i < LANES; i++) acc.at[i] += weights.at[i] * two[i & 1];
    return acc;
}

INLINE void add_scaled_acc(float *to, Acc even, Acc odd, const float *scale) {
    for (int r = 0; r < LANES / 2; r++) {
        float sum = (even.at[2 * r] + even.at[2 * r + 1]) + (odd.at[2 * r] + odd.at[2 * r + 1]);
        to[r] += scale[r] * sum;
    }
}

typedef struct { uint8_t at[4 * LANES / 2]; } Codes;
typedef struct { int32_t at[LANES / 2]; } IntAcc;

INLINE Codes unpack_codes(const int bits, const uint8_t *line, int part) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    Codes bytes;
    for (int i = 0; i < LANES; i++) {
        int place = i / 2 * 4 + i % 2; /* lane 2r + j is output r, input j */
        bytes.at[place] = bits == 8 ? from[i] ^ 128 : from[i] & 15;
        bytes.at[place + 2] = bits == 8 ? from[LANES + i] ^ 128 : from[i] >> 4;
    }
    return bytes;
}

INLINE void store_codes(uint8_t *to, Codes bytes) { memcpy(to, &bytes, sizeof bytes); }

INLINE Codes load_codes(const uint8_t *from) {
    Codes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

INLINE IntAcc zero_int_acc(void) { return (IntAcc){{0}}; }

INLINE IntAcc dot_int8(IntAcc acc, Codes weights, const int8_t *x) {
    for (int r = 0; r < LANES / 2; r++)
        for (int j = 0; j < STEP; j++) acc.at[r] += weights.at[STEP * r + j] * x[j];
    return acc;
}

INLINE void add_int_acc(int32_t *to, IntAcc acc) {
    for (int r = 0; r < LANES / 2; r++) to[r] += acc.at[r];
}

INLINE void add_scaled_int_acc(float *to, IntAcc acc, int32_t correction, const float *scale) {
    for (int r = 0; r < LANES / 2; r++) to[r] += scale[r] * (float)(acc.at[r] - correction);
}

#endif
#endif
