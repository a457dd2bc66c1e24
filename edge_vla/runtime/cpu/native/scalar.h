/* bfloat16 conversion and activation functions of one number, in forms that the compiler vectorises. NaN stays NaN.
 *
 * What is rounded once is said by `fused`, and the compiler fuses nothing else: so every target gives the same bits.
 */
#ifndef EDGE_VLA_SCALAR
#define EDGE_VLA_SCALAR

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

/* a b + c, rounded once. */
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

static inline float to_float(bf16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest, ties to even. */
static inline bf16 to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fc0 : (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float round_bf16(float value) { return to_float(to_bf16(value)); }

/* exp(x) as a product of two numbers, to a relative error of 2e-7; x is clamped to [-87, 88]. */
static inline void exponential_factors(float x, float *power, float *scale) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = fused(x, 1.44269504f, 12582912.0f); /* the nearest integer is in its low bits */
    float integer = shifted - 12582912.0f;
    float rest = fused(integer, 2.12194440e-4f, fused(-integer, 0.693359375f, x));
    float series = fused(rest, 1.9875691500e-4f, 1.3981999507e-3f);
    series = fused(rest, series, 8.3334519073e-3f);
    series = fused(rest, series, 4.1665795894e-2f);
    series = fused(rest, series, 1.6666665459e-1f);
    series = fused(rest, series, 5.0000001201e-1f);
    *power = fused(rest, series * rest, rest) + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    memcpy(scale, &bits, sizeof bits);
}

static inline float exponential(float x) {
    float power, scale;
    exponential_factors(x, &power, &scale);
    return power * scale;
}

/* x / 2 * (1 + erf(x / sqrt 2)), erf to 2e-7 (Abramowitz and Stegun, 7.1.26). */
static inline float gelu(float x) {
    float size = (x < 0.0f ? -x : x) * 0.70710678f;
    float t = 1.0f / fused(0.3275911f, size, 1.0f);
    float series = fused(t, fused(t, 1.061405429f, -1.453152027f), 1.421413741f);
    series = t * fused(t, fused(t, series, -0.284496736f), 0.254829592f);
    float tail = 0.5f * series * exponential(-size * size); /* the normal distribution below -|x| */
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

static inline float silu(float x) {
    float power, scale;
    exponential_factors(-x, &power, &scale);
    return x / fused(power, scale, 1.0f);
}

#endif
