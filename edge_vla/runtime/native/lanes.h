/* The smallest step of a product: 16 outputs x 2 inputs, as 32 lanes, from weights of 4, 8 or 16 bits.
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

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(EDGE_VLA_PLAIN)
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

#endif
#endif
