/* The most products a second that a target's instructions can do: loops over registers, no memory, no tiles.
 *
 * Made for one target, with the engine's own `lanes.h`; returns products (multiplications with their additions) done.
 */
#include "gemm.h"

#define SUMS 12 /* independent: their latency is hidden */

#if defined(__aarch64__)
#define KEEP(value) __asm__ volatile("" : "+w"(value))
#else
#define KEEP(value) __asm__ volatile("" : "+x"(value))
#endif

int64_t float_products(int64_t loops) {
    Floats sum[SUMS], one = all_floats(1.0f), small = all_floats(1e-9f);
    for (int i = 0; i < SUMS; i++) sum[i] = small;
    for (int64_t n = 0; n < loops; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) {
            sum[i] = multiply_add(one, small, sum[i]);
            KEEP(sum[i]);
        }
    return loops * SUMS * WIDTH;
}

/* Of bytes: `dot_bytes`, what rows in 8 bits cost; rows in 16 bits cost two of them. */
int64_t byte_products(int64_t loops) {
    Chain sum[SUMS];
    uint8_t bytes[4 * WIDTH] = {1};
    Words weights = load_words(bytes), x = load_words(bytes);
    for (int i = 0; i < SUMS; i++) sum[i] = begin_chain(zero_ints());
    for (int64_t n = 0; n < loops; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) {
            sum[i] = dot_bytes(sum[i], weights, x);
            KEEP(sum[i]);
        }
    return loops * SUMS * WIDTH * STEP;
}

/* Of pairs of bf16, where there is such an instruction. */
int64_t bf16_products(int64_t loops) {
#if BF16_DOT
    Acc sum[SUMS];
    Lanes weights = lanes_from_int8((const uint8_t *)levels);
    bf16 x[2] = {0};
    for (int i = 0; i < SUMS; i++) sum[i] = zero_acc();
    for (int64_t n = 0; n < loops; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) {
            sum[i] = dot_bf16(sum[i], weights, x);
            KEEP(sum[i]);
        }
    return loops * SUMS * LANES;
#else
    (void)loops;
    return 0;
#endif
}
