// The CPU kernels that multiply bfloat16 as it is, for x86 with AVX-512 and AVX512-BF16.
#include "cpu/kernels.h"

#if defined(D2LS_HAVE_AVX512_BF16)
#include <immintrin.h>
// No standard header may follow: what is inlined below must not leak into code for other processors.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define D2LS_LANES 16

namespace d2ls {
namespace avx512_bf16 {

#include "cpu/simd.inc.h"
#include "cpu/convert.inc.h"
#include "cpu/pairs.inc.h"
#include "cpu/gemm.inc.h"
#include "cpu/factors_pairs.inc.h"
#include "cpu/pass_tile.inc.h"
#include "cpu/pass_forward.inc.h"
#include "cpu/pass_backward.inc.h"

}  // namespace avx512_bf16

PassKernels pass_kernels_avx512_bf16() { return avx512_bf16::pass_kernels(); }

}  // namespace d2ls

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
