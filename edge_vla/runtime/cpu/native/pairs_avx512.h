/* bf16 in pairs on AVX-512 with BF16: one instruction multiplies 16 pairs by a pair and adds. */
#ifndef EDGE_VLA_PAIRS_AVX512
#define EDGE_VLA_PAIRS_AVX512

typedef __m512bh Lanes;
typedef __m512 Acc; /* float32 [16] */

INLINE Lanes load_lanes(const uint8_t *from) { return (Lanes)_mm512_loadu_si512(from); }

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

#endif
