/* The instructions: vectors of WIDTH floats or 32-bit words, and the few operations that the engine needs of them.
 *
 * One file for each family knows its instructions; a target's define (targets.py) chooses. Here is what they share.
 *
 * A block is 64 outputs. Weights lie in lines of a block, in one of two layouts:
 *   pairs  bf16 weights, 4 inputs a line. For each 16 outputs 32 lanes of inputs 0 and 1, then 32 of inputs 2 and 3.
 *          Lane 2r + j is output r, input j. Where BF16_DOT, an instruction multiplies pairs of bf16.
 *   words  8-bit and 4-bit weights: 64 words of 32 bits, one an output: 4 inputs in 8 bits, or 8 inputs in 4 bits, byte
 *          c holding input c in its low nibble and input 4 + c in its high one. Rows come as integers, whose sums no
 *          order of adding changes.
 * Codes in words are unsigned: plus ZERO_POINT(bits), of which a family may have none for 8 bits.
 */
#ifndef EDGE_VLA_LANES
#define EDGE_VLA_LANES

#include "scalar.h"

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 64 /* outputs of a line */
#define STEP 4   /* inputs of a line of pairs, and of a word in 8 bits */
#define PARTS 4  /* of a line of pairs, 16 outputs each */
#define LANES 32
#define LINE(bits) (STEP * BLOCK * (bits) / 8) /* bytes of STEP inputs */

#if defined(LANES_AVX512_BF16) || defined(LANES_AVX512_VNNI) || defined(LANES_AVX512) || defined(LANES_AVX2_VNNI) || \
    defined(LANES_AVX2)
#include "lanes_x86.h"
#elif defined(LANES_NEON) || defined(LANES_NEON_DOTPROD) || defined(LANES_NEON_I8MM) || defined(LANES_NEON_BF16)
#include "lanes_neon.h"
#else
#include "lanes_scalar.h"
#endif

#if defined(LANES_AVX512_BF16)
#include "pairs_avx512.h"
#define BF16_DOT 1
#else
#define BF16_DOT 0
#endif

#define VECTORS (BLOCK / WIDTH) /* of a block */

#endif
