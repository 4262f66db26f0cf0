// Between torch's stable tensors and the kernels' plain pointers. Only files that register operators include this.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void parallel(int64_t count, int64_t grain, const Range& body) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

inline Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(false, "d2ls_fast: the CPU kernels take float32, bfloat16 and float16 pixels");
  }
}

inline Dtype dtype_of(const Tensor& pixels) { return dtype_of(pixels.scalar_type()); }

inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
inline float* mutable_floats(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// A contiguous float32 tensor of exactly this many elements.
inline Tensor float_tensor(const Tensor& tensor, int64_t numel, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == numel, "d2ls_fast: ", name,
                  " must be float32 with ", numel, " elements, got ", tensor.numel());
  return torch::stable::contiguous(tensor);
}

}  // namespace d2ls
