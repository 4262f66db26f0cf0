// The CPU kernels for any processor: 128-bit vectors, which SSE2 and NEON both have.
#include "cpu/classify.h"
#include "cpu/pass.h"
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
#include "cpu/classify.inc.h"

}  // namespace portable

PassKernels pass_kernels_portable() { return portable::pass_kernels(); }
ClassifyKernels classify_kernels_portable() { return portable::classify_kernels(); }
ProjectedKernels projected_kernels_portable() { return portable::projected_kernels(); }

}  // namespace d2ls
