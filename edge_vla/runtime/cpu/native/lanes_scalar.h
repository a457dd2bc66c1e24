/* The operations in plain C: what the others must equal, and what runs where none of them does. */
#ifndef EDGE_VLA_LANES_SCALAR
#define EDGE_VLA_LANES_SCALAR

#define WIDTH 4
#define FLOAT_COLUMNS 1
#define FLOAT_ROWS 6
#define INT_COLUMNS 1
enum { STEPS_AT_ONCE = 1 };
#define INT_ROWS 6
#define GEMV_COLUMNS 1

typedef struct { float at[WIDTH]; } Floats;
typedef struct { uint8_t at[4 * WIDTH]; } Words;
typedef struct { int32_t at[WIDTH]; } Ints;

INLINE Floats load_floats(const float *from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}
INLINE void store_floats(float *to, Floats values) { memcpy(to, &values, sizeof values); }
INLINE Floats all_floats(float value) { return (Floats){{value, value, value, value}}; }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    for (int i = 0; i < WIDTH; i++) c.at[i] = fused(a.at[i], b.at[i], c.at[i]);
    return c;
}
INLINE Floats to_floats(Ints values) {
    Floats real;
    for (int i = 0; i < WIDTH; i++) real.at[i] = (float)values.at[i];
    return real;
}

INLINE Words load_words(const void *from) {
    Words words;
    memcpy(&words, from, sizeof words);
    return words;
}
INLINE void store_words(void *to, Words words) { memcpy(to, &words, sizeof words); }
INLINE Words all_words(const void *from) {
    Words words;
    for (int i = 0; i < WIDTH; i++) memcpy(words.at + 4 * i, from, 4);
    return words;
}

INLINE void widen(Words pairs, Floats *first, Floats *second) {
    for (int i = 0; i < WIDTH; i++) {
        bf16 pair[2];
        memcpy(pair, pairs.at + 4 * i, sizeof pair);
        first->at[i] = to_float(pair[0]);
        second->at[i] = to_float(pair[1]);
    }
}

INLINE void split_nibbles(Words codes, Words *low, Words *high) {
    for (int i = 0; i < 4 * WIDTH; i++) {
        low->at[i] = codes.at[i] & 15;
        high->at[i] = codes.at[i] >> 4;
    }
}

INLINE Ints zero_ints(void) { return (Ints){{0}}; }
INLINE Ints add_ints(Ints a, Ints b) {
    for (int i = 0; i < WIDTH; i++) a.at[i] += b.at[i];
    return a;
}
INLINE Ints subtract_all(Ints sums, int32_t number) {
    for (int i = 0; i < WIDTH; i++) sums.at[i] -= number;
    return sums;
}
INLINE Ints load_ints(const void *from) {
    Ints sums;
    memcpy(&sums, from, sizeof sums);
    return sums;
}
INLINE void store_ints(void *to, Ints sums) { memcpy(to, &sums, sizeof sums); }
INLINE Ints shift_left(Ints sums, int bits) {
    for (int i = 0; i < WIDTH; i++) sums.at[i] = (int32_t)((uint32_t)sums.at[i] << bits);
    return sums;
}

#define ZERO_POINT(bits) (1 << ((bits) - 1))
#define CHAIN (1 << 30)
#define INT16_PRODUCT(bits, planes) 0

typedef Ints Chain;

INLINE Chain begin_chain(Ints sums) { return sums; }
INLINE Chain dot_bytes(Chain chain, Words weights, Words x) {
    for (int i = 0; i < 4 * WIDTH; i++) chain.at[i / 4] += weights.at[i] * (int8_t)x.at[i];
    return chain;
}
INLINE Ints end_chain(Ints sums, Chain chain) {
    (void)sums;
    return chain;
}

#endif
