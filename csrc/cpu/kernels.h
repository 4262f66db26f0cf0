// The kernels of every operator, compiled once for each instruction set.
#pragma once

#include "cpu/classify.h"
#include "cpu/isa.h"
#include "cpu/nce.h"
#include "cpu/pass.h"
#include "cpu/projected.h"
#include "cpu/pyramid.h"
#include "cpu/segmentation.h"
#include "cpu/step.h"

namespace d2ls {

struct Kernels {
  PassKernels pass;
  ProjectedKernels projected;
  ClassifyKernels classify;
  SegmentationKernels segmentation;
  PyramidKernels pyramid;
  NceKernels nce;
  StepKernels step;
};

Kernels kernels_portable();
Kernels kernels_avx2();
Kernels kernels_avx512();
PassKernels pass_kernels_avx512_bf16();  // bfloat16 pixels only

// Those of isa().
const Kernels& chosen_kernels();

// The pass for pixels of a dtype: bfloat16 is multiplied as it is where isa_for_bf16() says so.
const PassKernels& chosen_pass(Dtype dtype);

}  // namespace d2ls
