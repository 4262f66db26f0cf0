// The CPU kernels for x86 with AVX2 and FMA.
#include "cpu/kernels.h"

#if defined(__x86_64__)
// No standard header may follow: what is inlined below must not leak into code for other processors.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define D2LS_LANES 8
#define D2LS_REGISTERS_16

namespace d2ls {
namespace avx2 {

#include "cpu/kernels.inc.h"

}  // namespace avx2

Kernels kernels_avx2() { return avx2::kernels(); }

}  // namespace d2ls

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
