/* Dequantises an int4 weight in the layout that torch packs for AVX-512. Plain C: the compiler vectorises it. */
#include "scalar.h"

#define BLOCK 64
#define HALF 32

/* `to_bf16` without the check for NaN, which takes a third of this routine's time. */
static inline bf16 finite_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* codes [n / 64, k, 32], scales [k / group, n, 2] -> out [k, pitch]: blocks first .. last - 1, in columns from block
 * `origin` on.
 *
 * Byte j of a line of codes holds row j in its low nibble and row j + 32 in its high one. Of a scale's two numbers the
 * second is a zero point that is always 0 here. Each value is (code - 8) scale, rounded once.
 */
void edge_vla_dequantise_int4(const uint8_t *codes, const bf16 *scales, bf16 *out, int64_t k, int64_t n, int64_t group,
                              int64_t first, int64_t last, int64_t origin, int64_t pitch) {
    for (int64_t block = first; block < last; block++) {
        for (int64_t g = 0; g < k / group; g++) {
            float scale[BLOCK];
            for (int i = 0; i < BLOCK; i++) scale[i] = to_float(scales[(g * n + block * BLOCK + i) * 2]);
            for (int64_t row = g * group; row < (g + 1) * group; row++) {
                const uint8_t *from = codes + (block * k + row) * HALF;
                bf16 *to = out + row * pitch + (block - origin) * BLOCK;
                for (int i = 0; i < HALF; i++) to[i] = finite_to_bf16((float)((from[i] & 15) - 8) * scale[i]);
                for (int i = 0; i < HALF; i++)
                    to[HALF + i] = finite_to_bf16((float)((from[i] >> 4) - 8) * scale[HALF + i]);
            }
        }
    }
}
