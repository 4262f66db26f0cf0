// The CPU kernels for x86 with AVX2 and FMA.
#include "cpu/classify.h"
#include "cpu/nce.h"
#include "cpu/pass.h"
#include "cpu/segmentation.h"
#include "cpu/pyramid.h"
#include "cpu/step.h"
#include "cpu/projected.h"

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

#include "cpu/simd.inc.h"
#include "cpu/convert.inc.h"
#include "cpu/gemm.inc.h"
#include "cpu/factors_float.inc.h"
#include "cpu/pass.inc.h"
#include "cpu/projected.inc.h"
#include "cpu/gelu.inc.h"
#include "cpu/classify_tile.inc.h"
#include "cpu/classify_gradients.inc.h"
#include "cpu/classify.inc.h"
#include "cpu/segmentation.inc.h"
#include "cpu/pyramid.inc.h"
#include "cpu/pyramid_backward.inc.h"
#include "cpu/nce.inc.h"
#include "cpu/product.inc.h"
#include "cpu/step.inc.h"

}  // namespace avx2

PassKernels pass_kernels_avx2() { return avx2::pass_kernels(); }
ClassifyKernels classify_kernels_avx2() { return avx2::classify_kernels(); }
SegmentationKernels segmentation_kernels_avx2() { return avx2::segmentation_kernels(); }
PyramidKernels pyramid_kernels_avx2() { return avx2::pyramid_kernels(); }
NceKernels nce_kernels_avx2() { return avx2::nce_kernels(); }
StepKernels step_kernels_avx2() { return avx2::step_kernels(); }
ProjectedKernels projected_kernels_avx2() { return avx2::projected_kernels(); }

}  // namespace d2ls

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
