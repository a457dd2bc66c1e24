/* AVX2 and AVX-512, with and without VNNI: the same operations on 8 or 16 words. */
#ifndef EDGE_VLA_LANES_X86
#define EDGE_VLA_LANES_X86

#include <immintrin.h>

#if defined(LANES_AVX2) || defined(LANES_AVX2_VNNI)
#define WIDTH 8
#define V(operation) _mm256_##operation
#define WHOLE(operation) _mm256_##operation##_si256
typedef __m256 Floats;
typedef __m256i Words;
#define FLOAT_COLUMNS 2 /* vectors of outputs beside each other: FLOAT_ROWS times so many sums fit the registers */
#define INT_COLUMNS 2
#define GEMV_COLUMNS 4
#else
#define WIDTH 16
#define V(operation) _mm512_##operation
#define WHOLE(operation) _mm512_##operation##_si512
typedef __m512 Floats;
typedef __m512i Words;
#define FLOAT_COLUMNS 4
#define INT_COLUMNS 4
#define GEMV_COLUMNS 4
#endif
#define FLOAT_ROWS 6
enum { STEPS_AT_ONCE = 4 }; /* of the loop over a tile of integers; `GCC unroll` takes no macro */

/* Typed, or the compiler keeps sums as 64-bit numbers, copied before each addition. */
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

INLINE Floats load_floats(const float *from) { return V(loadu_ps)(from); }
INLINE void store_floats(float *to, Floats values) { V(storeu_ps)(to, values); }
INLINE Floats all_floats(float value) { return V(set1_ps)(value); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return V(fmadd_ps)(a, b, c); }
INLINE Floats to_floats(Ints values) { return V(cvtepi32_ps)((Words)values); }

INLINE Words load_words(const void *from) { return WHOLE(loadu)((const Words *)from); }
INLINE void store_words(void *to, Words words) { WHOLE(storeu)((Words *)to, words); }

/* Four bytes in every word. */
INLINE Words all_words(const void *from) {
    int32_t word;
    memcpy(&word, from, sizeof word);
    return V(set1_epi32)(word);
}

/* Words of two bf16 -> the first and the second of each. */
INLINE void widen(Words pairs, Floats *first, Floats *second) {
    *first = (Floats)V(slli_epi32)(pairs, 16);
    *second = (Floats)WHOLE(and)(pairs, V(set1_epi32)(-65536));
}

/* Words in 4 bits -> bytes of inputs 0 to 3, and of 4 to 7. */
INLINE void split_nibbles(Words codes, Words *low, Words *high) {
    Words mask = V(set1_epi8)(15);
    *low = WHOLE(and)(codes, mask);
    *high = WHOLE(and)(V(srli_epi16)(codes, 4), mask);
}

INLINE Ints zero_ints(void) { return (Ints)WHOLE(setzero)(); }
INLINE Ints add_ints(Ints a, Ints b) { return (Ints)V(add_epi32)((Words)a, (Words)b); }
INLINE Ints subtract_all(Ints sums, int32_t number) { return (Ints)V(sub_epi32)((Words)sums, V(set1_epi32)(number)); }
INLINE Ints load_ints(const void *from) { return (Ints)load_words(from); }
INLINE void store_ints(void *to, Ints sums) { store_words(to, (Words)sums); }
INLINE Ints shift_left(Ints sums, int bits) { return (Ints)V(slli_epi32)((Words)sums, bits); }

#define ZERO_POINT(bits) (1 << ((bits) - 1)) /* the instructions multiply unsigned by signed bytes */

#if defined(LANES_AVX2) || defined(LANES_AVX512)
/* Without VNNI products of bytes are added in pairs, in 16 bits: enough for so many of 4-bit codes, for none of 8. */
#define CHAIN 8
#define INT16_PRODUCT(bits, planes) ((bits) == 8 || (planes) == 2) /* numbers of 16 bits cost no more: `dot_int16` */
#define INT_ROWS 4

typedef int16_t Chain __attribute__((vector_size(4 * WIDTH)));

INLINE Chain begin_chain(Ints sums) { return (Chain)(sums ^ sums); }
INLINE Chain dot_bytes(Chain chain, Words weights, Words x) {
    return (Chain)V(add_epi16)((Words)chain, V(maddubs_epi16)(weights, x));
}
INLINE Ints end_chain(Ints sums, Chain chain) {
    return (Ints)V(add_epi32)((Words)sums, V(madd_epi16)((Words)chain, V(set1_epi16)(1)));
}

/* sums += pairs of 16-bit weights times a pair of inputs. */
INLINE Ints dot_int16(Ints sums, Words weights, Words x) {
    return (Ints)V(add_epi32)((Words)sums, V(madd_epi16)(weights, x));
}

#define NONE 128
#define FOUR_TIMES(...) {__VA_ARGS__, __VA_ARGS__, __VA_ARGS__, __VA_ARGS__}
static const uint8_t first_bytes[64] =
    FOUR_TIMES(0, NONE, 1, NONE, 4, NONE, 5, NONE, 8, NONE, 9, NONE, 12, NONE, 13, NONE);
static const uint8_t second_bytes[64] =
    FOUR_TIMES(2, NONE, 3, NONE, 6, NONE, 7, NONE, 10, NONE, 11, NONE, 14, NONE, 15, NONE);

/* Bytes 0 and 1 of each word in 16 bits, and bytes 2 and 3. */
INLINE void split_bytes(Words codes, Words *first, Words *second) {
    *first = V(shuffle_epi8)(codes, load_words(first_bytes));
    *second = V(shuffle_epi8)(codes, load_words(second_bytes));
}
#else
#define CHAIN (1 << 30) /* sums themselves are the chain */
#define INT16_PRODUCT(bits, planes) 0
#define INT_ROWS 6

typedef Ints Chain;

INLINE Chain begin_chain(Ints sums) { return sums; }
INLINE Chain dot_bytes(Chain chain, Words weights, Words x) {
#ifdef LANES_AVX2_VNNI
    return (Chain)_mm256_dpbusd_avx_epi32((Words)chain, weights, x);
#else
    return (Chain)_mm512_dpbusd_epi32((Words)chain, weights, x);
#endif
}
INLINE Ints end_chain(Ints sums, Chain chain) {
    (void)sums;
    return chain;
}
#endif
#endif
