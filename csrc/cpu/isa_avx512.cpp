// The CPU kernels for x86 with AVX-512 (F, BW, DQ, VL).
#include "cpu/kernels.h"

#if defined(__x86_64__)
// No standard header may follow: what is inlined below must not leak into code for other processors.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define D2LS_LANES 16

namespace d2ls {
namespace avx512 {

#include "cpu/kernels.inc.h"

}  // namespace avx512

Kernels kernels_avx512() { return avx512::kernels(); }

}  // namespace d2ls

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
