/* bfloat16 and the functions of a network, in forms that a compiler makes vectors of. What is no number stays none. */
#ifndef EDGE_VLA_NUMBERS
#define EDGE_VLA_NUMBERS

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widen(bf16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest, ties to even. */
static inline bf16 narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fc0 : (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float rounded(float value) { return widen(narrow(value)); }

/* e^x to 2e-7 of itself between e^-87 and e^88, and those values beyond. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* its low bits are now the nearest whole number */
    float whole = shifted - 12582912.0f;
    float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
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

/* Half of x times 1 + erf(x / sqrt 2), the error function to 2e-7 (Abramowitz and Stegun, 7.1.26). */
static inline float gelu(float x) {
    float size = (x < 0.0f ? -x : x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * size);
    float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float below = 0.5f * series * exponential(-size * size); /* the normal distribution below -|x| */
    return x * (x < 0.0f ? below : 1.0f - below);
}

static inline float silu(float x) { return x / (1.0f + exponential(-x)); }

#endif
