// Everything that is compiled once for every instruction set.
// Included inside the namespace of one instruction set; see isa_*.cpp.

#include "cpu/simd.inc.h"
#include "cpu/convert.inc.h"
#include "cpu/gemm.inc.h"
#include "cpu/factors_float.inc.h"
#include "cpu/pass_tile.inc.h"
#include "cpu/pass_forward.inc.h"
#include "cpu/pass_backward.inc.h"
#include "cpu/projected_tile.inc.h"
#include "cpu/attend_projected.inc.h"
#include "cpu/refine_projected.inc.h"
#include "cpu/refine_projected_backward.inc.h"
#include "cpu/projected.inc.h"
#include "cpu/gelu.inc.h"
#include "cpu/classify_tile.inc.h"
#include "cpu/classify_gradients.inc.h"
#include "cpu/classify.inc.h"
#include "cpu/segmentation.inc.h"
#include "cpu/pyramid.inc.h"
#include "cpu/pyramid_backward.inc.h"
#include "cpu/nce_tile.inc.h"
#include "cpu/nce_forward.inc.h"
#include "cpu/nce_backward.inc.h"
#include "cpu/product.inc.h"
#include "cpu/step_rows.inc.h"
#include "cpu/step_forward.inc.h"
#include "cpu/step_backward.inc.h"

inline Kernels kernels() {
  return {pass_kernels(),    projected_kernels(), classify_kernels(), segmentation_kernels(),
          pyramid_kernels(), nce_kernels(),       step_kernels()};
}
