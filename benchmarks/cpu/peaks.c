/* The most products a second that a target's instructions can do: loops over registers, no memory, no tiles.
 *
 * Made for one target, with the engine's own `lanes.h`; returns products (multiplications with their additions) done.
 */
#include "gemm.h"

/* Twelve independent sums hide the latency; each has a name, or the compiler keeps them in memory. */
#define SUMS 12
#define EACH(do_it) \
    do_it(0) do_it(1) do_it(2) do_it(3) do_it(4) do_it(5) do_it(6) do_it(7) do_it(8) do_it(9) do_it(10) do_it(11)

#if defined(__aarch64__)
#define KEEP(value) __asm__ volatile("" : "+w"(value))
#else
#define KEEP(value) __asm__ volatile("" : "+x"(value))
#endif

int64_t float_products(int64_t loops) {
    Floats one = all_floats(1.0f), small = all_floats(1e-9f);
#define BEGIN(i) Floats sum##i = small;
#define ADD(i) sum##i = multiply_add(one, small, sum##i); KEEP(sum##i);
    EACH(BEGIN)
    for (int64_t n = 0; n < loops; n++) { EACH(ADD) }
#undef BEGIN
#undef ADD
    return loops * SUMS * WIDTH;
}

/* Of bytes: `dot_bytes`, what rows in 8 bits cost; rows in 16 bits cost two of them. Weights are said to change, or a
 * product that two instructions make would be made once. */
int64_t byte_products(int64_t loops) {
    uint8_t bytes[4 * WIDTH] = {1};
    Words weights = load_words(bytes), x = load_words(bytes);
#define BEGIN(i) Chain sum##i = begin_chain(zero_ints());
#if defined(LANES_NEON)
#define ADD(i) KEEP(weights); sum##i = dot_bytes(sum##i, weights, x); KEEP(sum##i.low); KEEP(sum##i.high);
#else
#define ADD(i) KEEP(weights); sum##i = dot_bytes(sum##i, weights, x); KEEP(sum##i);
#endif
    EACH(BEGIN)
    for (int64_t n = 0; n < loops; n++) { EACH(ADD) }
#undef BEGIN
#undef ADD
    return loops * SUMS * WIDTH * STEP;
}

/* Of pairs of bf16, where there is such an instruction. */
int64_t bf16_products(int64_t loops) {
#if BF16_DOT
    Lanes weights = load_lanes((const uint8_t *)ones);
    bf16 x[2] = {0};
#define BEGIN(i) Acc sum##i = zero_acc();
#define ADD(i) sum##i = dot_bf16(sum##i, weights, x); KEEP(sum##i);
    EACH(BEGIN)
    for (int64_t n = 0; n < loops; n++) { EACH(ADD) }
#undef BEGIN
#undef ADD
    return loops * SUMS * LANES;
#else
    (void)loops;
    return 0;
#endif
}
