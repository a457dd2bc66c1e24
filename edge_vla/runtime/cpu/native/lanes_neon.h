/* 64-bit Arm: NEON, and its products of bytes where they are (dotprod, i8mm). */
#ifndef EDGE_VLA_LANES_NEON
#define EDGE_VLA_LANES_NEON

#include <arm_neon.h>

#define WIDTH 4
#define FLOAT_COLUMNS 2
#define FLOAT_ROWS 6
#define GEMV_COLUMNS 4

typedef float32x4_t Floats;
typedef uint8x16_t Words;
typedef int32x4_t Ints;

INLINE Floats load_floats(const float *from) { return vld1q_f32(from); }
INLINE void store_floats(float *to, Floats values) { vst1q_f32(to, values); }
INLINE Floats all_floats(float value) { return vdupq_n_f32(value); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
INLINE Floats to_floats(Ints values) { return vcvtq_f32_s32(values); }

INLINE Words load_words(const void *from) { return vld1q_u8(from); }
INLINE void store_words(void *to, Words words) { vst1q_u8(to, words); }

/* Four bytes in every word. */
INLINE Words all_words(const void *from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return vreinterpretq_u8_u32(vdupq_n_u32(word));
}

/* Words of two bf16 -> the first and the second of each. */
INLINE void widen(Words pairs, Floats *first, Floats *second) {
    uint32x4_t both = vreinterpretq_u32_u8(pairs);
    *first = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    *second = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
}

/* Words in 4 bits -> bytes of inputs 0 to 3, and of 4 to 7. */
INLINE void split_nibbles(Words codes, Words *low, Words *high) {
    *low = vandq_u8(codes, vdupq_n_u8(15));
    *high = vshrq_n_u8(codes, 4);
}

INLINE Ints zero_ints(void) { return vdupq_n_s32(0); }
INLINE Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
INLINE Ints subtract_all(Ints sums, int32_t number) { return vsubq_s32(sums, vdupq_n_s32(number)); }
INLINE Ints load_ints(const void *from) { return vreinterpretq_s32_u8(vld1q_u8(from)); }
INLINE void store_ints(void *to, Ints sums) { vst1q_u8(to, vreinterpretq_u8_s32(sums)); }
INLINE Ints shift_left(Ints sums, int bits) { return vshlq_s32(sums, vdupq_n_s32(bits)); }

#define ZERO_POINT(bits) ((bits) == 4 ? 8 : 0) /* signed bytes are multiplied as they are */
#define INT16_PRODUCT(bits, planes) 0
#define CHAIN (1 << 30)

enum { STEPS_AT_ONCE = 1 }; /* of the loop over a tile of integers */

#ifdef __ARM_FEATURE_DOTPROD
#define INT_COLUMNS 4
#define INT_ROWS 6

typedef Ints Chain;

INLINE Chain begin_chain(Ints sums) { return sums; }
INLINE Chain dot_bytes(Chain chain, Words weights, Words x) {
    return vdotq_s32(chain, vreinterpretq_s8_u8(weights), vreinterpretq_s8_u8(x));
}
INLINE Ints end_chain(Ints sums, Chain chain) {
    (void)sums;
    return chain;
}
#else
#define INT_COLUMNS 2
#define INT_ROWS 4

/* Sums of two inputs each: of words 0 and 1, and of words 2 and 3. */
typedef struct { int32x4_t low, high; } Chain;

INLINE Chain begin_chain(Ints sums) {
    (void)sums;
    return (Chain){vdupq_n_s32(0), vdupq_n_s32(0)};
}
INLINE Chain dot_bytes(Chain chain, Words weights, Words x) {
    int8x16_t codes = vreinterpretq_s8_u8(weights), four = vreinterpretq_s8_u8(x);
    chain.low = vpadalq_s16(chain.low, vmull_s8(vget_low_s8(codes), vget_low_s8(four)));
    chain.high = vpadalq_s16(chain.high, vmull_high_s8(codes, four));
    return chain;
}
INLINE Ints end_chain(Ints sums, Chain chain) { return vaddq_s32(sums, vpaddq_s32(chain.low, chain.high)); }
#endif
#endif
