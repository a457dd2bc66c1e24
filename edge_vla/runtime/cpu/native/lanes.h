/* The smallest step of a product: 16 outputs x 2 inputs, as 32 lanes, from weights of 4, 8 or 16 bits. Of a product in
 * whole numbers: 16 outputs x 4 inputs, as 64 bytes, from 4 or 8 bits.
 *
 * A line holds the weights of 64 outputs and 4 inputs: for each 16 outputs 32 lanes of the first two inputs, then 32
 * of the other two (at 4 bits: low nibbles, then high ones). Lane 2r + j is output r, input j.
 * There are two forms with one face: instructions for bfloat16 products, and plain C for every other machine.
 */
#ifndef EDGE_VLA_LANES
#define EDGE_VLA_LANES

#include "numbers.h"

#define ALWAYS static inline __attribute__((always_inline))
#define BLOCK 64  /* outputs of a line */
#define STEP 4    /* inputs of a line */
#define PARTS 4   /* of 16 outputs */
#define LANES 32
#define LINE(bits) (STEP * BLOCK * (bits) / 8)

#define ABOVE(bits) (1 << ((bits) - 1)) /* what is added to a code, so that none is below zero */

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && !defined(EDGE_VLA_PLAIN)
#include <immintrin.h>
#define EDGE_VLA_INSTRUCTIONS 1

typedef __m512bh Lanes;
typedef __m512 Sums; /* one for each of 16 outputs */

ALWAYS Lanes lanes_from_bytes(const uint8_t *bytes) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(bytes + 16))));
    return _mm512_cvtne2ps_pbh(high, low);
}

/* Looked up by five bits, of which the fifth belongs to the next code. */
static const bf16 levels[LANES] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
    0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
    0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
};

ALWAYS void unpack(const int bits, const uint8_t *line, int part, Lanes *first, Lanes *second) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    if (bits == 16) {
        *first = (Lanes)_mm512_loadu_si512(from);
        *second = (Lanes)_mm512_loadu_si512(from + 2 * LANES);
    } else if (bits == 8) {
        *first = lanes_from_bytes(from);
        *second = lanes_from_bytes(from + LANES);
    } else {
        __m512i table = _mm512_loadu_si512(levels);
        __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)from));
        *first = (Lanes)_mm512_permutexvar_epi16(both, table);
        *second = (Lanes)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
    }
}

ALWAYS void keep_lanes(uint8_t *to, Lanes lanes) { _mm512_storeu_si512(to, (__m512i)lanes); }

ALWAYS Sums no_sums(void) { return _mm512_setzero_ps(); }

/* Each output's two weights times the two inputs at `x`, added. */
ALWAYS Sums multiply_add(Sums sums, Lanes weights, const bf16 *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm512_dpbf16_ps(sums, weights, (Lanes)_mm512_set1_epi32(both));
}

ALWAYS void add_scaled(float *to, Sums even, Sums odd, const float *scale) {
    __m512 sums = _mm512_add_ps(even, odd);
    _mm512_storeu_ps(to, _mm512_fmadd_ps(sums, _mm512_loadu_ps(scale), _mm512_loadu_ps(to)));
}

typedef __m512i Bytes;
typedef int32_t Wholes __attribute__((vector_size(64))); /* one for each of 16 outputs */

/* Codes plus `ABOVE(bits)`, the four inputs of an output side by side. */
ALWAYS Bytes unpack_bytes(const int bits, const uint8_t *line, int part) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    if (bits == 8) {
        __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + LANES)));
        return _mm512_xor_si512(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)), _mm512_set1_epi8(-128));
    }
    __m512i low = _mm512_and_si512(first, _mm512_set1_epi32(0x00000f0f));
    return _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi32(first, 12), _mm512_set1_epi32(0x0f0f0000)));
}

ALWAYS void keep_bytes(uint8_t *to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
ALWAYS Bytes kept_bytes(const uint8_t *from) { return _mm512_loadu_si512(from); }

ALWAYS Wholes no_wholes(void) { return (Wholes){0}; }

/* Each output's four bytes times the four inputs at `x`, added. */
ALWAYS Wholes multiply_add_whole(Wholes sums, Bytes weights, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return (Wholes)_mm512_dpbusd_epi32((__m512i)sums, weights, _mm512_set1_epi32(four));
}

ALWAYS void add_whole(int32_t *to, Wholes sums) {
    _mm512_storeu_si512(to, _mm512_add_epi32((__m512i)sums, _mm512_loadu_si512(to)));
}

ALWAYS void add_whole_scaled(float *to, Wholes sums, int32_t above, const float *scale) {
    __m512 real = _mm512_cvtepi32_ps(_mm512_sub_epi32((__m512i)sums, _mm512_set1_epi32(above)));
    _mm512_storeu_ps(to, _mm512_fmadd_ps(real, _mm512_loadu_ps(scale), _mm512_loadu_ps(to)));
}

#else
#define EDGE_VLA_INSTRUCTIONS 0

typedef struct { float at[LANES]; } Lanes;
typedef struct { float at[LANES]; } Sums;

ALWAYS void unpack(const int bits, const uint8_t *line, int part, Lanes *first, Lanes *second) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    for (int i = 0; i < LANES; i++) {
        if (bits == 16) {
            bf16 both[2];
            memcpy(both, from + 2 * i, 2);
            memcpy(both + 1, from + 2 * (LANES + i), 2);
            first->at[i] = widen(both[0]);
            second->at[i] = widen(both[1]);
        } else if (bits == 8) {
            first->at[i] = (float)(int8_t)from[i];
            second->at[i] = (float)(int8_t)from[LANES + i];
        } else {
            first->at[i] = (float)((from[i] & 15) - 8);
            second->at[i] = (float)((from[i] >> 4) - 8);
        }
    }
}

ALWAYS void keep_lanes(uint8_t *to, Lanes lanes) {
    bf16 halves[LANES];
    for (int i = 0; i < LANES; i++) halves[i] = narrow(lanes.at[i]);
    memcpy(to, halves, sizeof halves);
}

ALWAYS Sums no_sums(void) { return (Sums){{0}}; }

ALWAYS Sums multiply_add(Sums sums, Lanes weights, const bf16 *x) {
    float two[2] = {widen(x[0]), widen(x[1])};
    for (int i = 0; i < LANES; i++) sums.at[i] += weights.at[i] * two[i & 1];
    return sums;
}

ALWAYS void add_scaled(float *to, Sums even, Sums odd, const float *scale) {
    for (int r = 0; r < LANES / 2; r++) {
        float sum = (even.at[2 * r] + even.at[2 * r + 1]) + (odd.at[2 * r] + odd.at[2 * r + 1]);
        to[r] += scale[r] * sum;
    }
}

typedef struct { uint8_t at[4 * LANES / 2]; } Bytes;
typedef struct { int32_t at[LANES / 2]; } Wholes;

ALWAYS Bytes unpack_bytes(const int bits, const uint8_t *line, int part) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    Bytes bytes;
    for (int i = 0; i < LANES; i++) {
        int place = i / 2 * 4 + i % 2; /* lane 2r + j is output r, input j */
        bytes.at[place] = bits == 8 ? from[i] ^ 128 : from[i] & 15;
        bytes.at[place + 2] = bits == 8 ? from[LANES + i] ^ 128 : from[i] >> 4;
    }
    return bytes;
}

ALWAYS void keep_bytes(uint8_t *to, Bytes bytes) { memcpy(to, &bytes, sizeof bytes); }

ALWAYS Bytes kept_bytes(const uint8_t *from) {
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

ALWAYS Wholes no_wholes(void) { return (Wholes){{0}}; }

ALWAYS Wholes multiply_add_whole(Wholes sums, Bytes weights, const int8_t *x) {
    for (int r = 0; r < LANES / 2; r++)
        for (int j = 0; j < STEP; j++) sums.at[r] += weights.at[STEP * r + j] * x[j];
    return sums;
}

ALWAYS void add_whole(int32_t *to, Wholes sums) {
    for (int r = 0; r < LANES / 2; r++) to[r] += sums.at[r];
}

ALWAYS void add_whole_scaled(float *to, Wholes sums, int32_t above, const float *scale) {
    for (int r = 0; r < LANES / 2; r++) to[r] += scale[r] * (float)(sums.at[r] - above);
}

#endif
#endif
