// The CPU kernels for any processor: 128-bit vectors, which SSE2 and NEON both have.
#include "cpu/classify.h"
#include "cpu/nce.h"
#include "cpu/pass.h"
#include "cpu/segmentation.h"
#include "cpu/pyramid.h"
#include "cpu/step.h"
#include "cpu/projected.h"

#define D2LS_LANES 4
#if defined(__x86_64__)
#define D2LS_REGISTERS_16
#endif

namespace d2ls {
namespace portable {

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

}  // namespace portable

PassKernels pass_kernels_portable() { return portable::pass_kernels(); }
ClassifyKernels classify_kernels_portable() { return portable::classify_kernels(); }
SegmentationKernels segmentation_kernels_portable() { return portable::segmentation_kernels(); }
PyramidKernels pyramid_kernels_portable() { return portable::pyramid_kernels(); }
NceKernels nce_kernels_portable() { return portable::nce_kernels(); }
StepKernels step_kernels_portable() { return portable::step_kernels(); }
ProjectedKernels projected_kernels_portable() { return portable::projected_kernels(); }

}  // namespace d2ls
