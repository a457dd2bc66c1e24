/* What this library was compiled for. Python reads it before it calls anything else.
 *
 * The texts can be read, and `edge_vla_runs_here` called, on any processor of the architecture.
 */
#include <stdint.h>

const char edge_vla_target[] = TARGET;
const char edge_vla_fingerprint[] = FINGERPRINT;

#if defined(__x86_64__)
#define BASELINE __attribute__((target("no-avx")))
#define REQUIRE(name) if (!__builtin_cpu_supports(name)) return 0

/* Whether this processor has all that the compiler was allowed to use, by its own macros. */
BASELINE int edge_vla_runs_here(void) {
    __builtin_cpu_init();
#ifdef __AVX2__
    REQUIRE("avx2");
#endif
#ifdef __FMA__
    REQUIRE("fma");
#endif
#ifdef __AVX512F__
    REQUIRE("avx512f");
#endif
#ifdef __AVX512BW__
    REQUIRE("avx512bw");
#endif
#ifdef __AVX512VL__
    REQUIRE("avx512vl");
#endif
#ifdef __AVX512DQ__
    REQUIRE("avx512dq");
#endif
#ifdef __AVX512VNNI__
    REQUIRE("avx512vnni");
#endif
#ifdef __AVX512BF16__
    REQUIRE("avx512bf16");
#endif
#ifdef __AVXVNNI__
    REQUIRE("avxvnni");
#endif
#ifdef __AMX_INT8__
    REQUIRE("amx-int8");
#endif
#ifdef __AMX_BF16__
    REQUIRE("amx-bf16");
#endif
    return 1;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

/* The same by the bits of Linux's asm/hwcap.h, of which old systems' headers lack the newer. */
int edge_vla_runs_here(void) {
    uint64_t needed = 1 << 1, needed2 = 0; /* asimd */
#ifdef __ARM_FEATURE_DOTPROD
    needed |= 1 << 20;
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    needed2 |= 1 << 13;
#endif
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
    needed2 |= 1 << 14;
#endif
    return (getauxval(AT_HWCAP) & needed) == needed && (getauxval(AT_HWCAP2) & needed2) == needed2;
}

#else
int edge_vla_runs_here(void) { return 1; }
#endif
