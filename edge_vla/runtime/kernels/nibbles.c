/* Widens a block of rows of an int4 weight, as torch packs it for AVX-512, to bfloat16.
 *
 * codes   (outer / 64, inner, 32) bytes: byte j of a line holds row j in its low nibble and row j + 32 in its high one
 * scales  (inner / group, outer, 2) bfloat16: a scale, and a zero that is always 0 here
 * out     (inner, stride) bfloat16: column (block - origin) * 64 + row; each value is (code - 8) * scale, rounded once
 *
 * Blocks first .. last - 1. Plain C on purpose: the compiler makes vectors of it for the machine that it runs on.
 */
#include <stdint.h>
#include <string.h>

#define BLOCK 64
#define HALF 32

static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t narrow(float value) { /* to nearest, ties to even; the values are finite */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void edge_vla_widen_int4(const uint8_t *codes, const uint16_t *scales, uint16_t *out, int64_t inner, int64_t outer,
                         int64_t group, int64_t first, int64_t last, int64_t origin, int64_t stride) {
    for (int64_t block = first; block < last; block++) {
        for (int64_t g = 0; g < inner / group; g++) {
            float scale[BLOCK];
            for (int i = 0; i < BLOCK; i++) scale[i] = widen(scales[(g * outer + block * BLOCK + i) * 2]);
            for (int64_t k = g * group; k < (g + 1) * group; k++) {
                const uint8_t *from = codes + (block * inner + k) * HALF;
                uint16_t *to = out + k * stride + (block - origin) * BLOCK;
                for (int i = 0; i < HALF; i++) to[i] = narrow((float)((from[i] & 15) - 8) * scale[i]);
                for (int i = 0; i < HALF; i++) to[HALF + i] = narrow((float)((from[i] >> 4) - 8) * scale[HALF + i]);
            }
        }
    }
}
