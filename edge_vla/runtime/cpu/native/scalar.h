/* bfloat16 conversion and activation functions of one number, in forms that the compiler vectorises. NaN stays NaN. */
#ifndef EDGE_VLA_SCALAR
#define EDGE_VLA_SCALAR

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

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

/* exp(x) to a relative error of 2e-7; x is clamped to [-87, 88]. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* the nearest integer is in its low bits */
    float integer = shifted - 12582912.0f;
    float rest = x - integer * 0.693359375f + integer * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

/* x / 2 * (1 + erf(x / sqrt 2)), erf to 2e-7 (Abramowitz and Stegun, 7.1.26). */
static inline float gelu(float x) {
    float size = (x < 0.0f ? -x : x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * size);
    float series = 1.421413741f + t * (-1.453152027f + t * 1.061405429f);
    series = t * (0.254829592f + t * (-0.284496736f + t * series));
    float tail = 0.5f * series * exponential(-size * size); /* the normal distribution below -|x| */
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

static inline float silu(float x) { return x / (1.0f + exponential(-x)); }

#endif
