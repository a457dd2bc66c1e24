/* bf16 in pairs on AVX-512 with BF16: one instruction multiplies 16 pairs by a pair and adds. */
#ifndef EDGE_VLA_PAIRS_AVX512
#define EDGE_VLA_PAIRS_AVX512

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

/* One part of a line in 4 or 8 bits -> words of bytes plus the zero point, the four inputs of an output side by side. */
INLINE Words unpack_codes(const int bits, const uint8_t *line, int part) {
    const uint8_t *from = line + part * (LINE(bits) / PARTS);
    __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    if (bits == 8) {
        __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + LANES)));
        return _mm512_xor_si512(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)), _mm512_set1_epi8(-128));
    }
    __m512i low = _mm512_and_si512(first, _mm512_set1_epi32(0x00000f0f));
    return _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi32(first, 12), _mm512_set1_epi32(0x0f0f0000)));
}

#endif
