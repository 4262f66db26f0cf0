// What the registration files share: tensors checked and handed on as plain pointers, the device and its stream.
#pragma once

#include <cuda_runtime_api.h>
#define USE_CUDA  // for the shim of the current stream
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "cuda/classify.h"

namespace d2ls::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of(const Tensor& pixels, bool tf32) {
  switch (pixels.scalar_type()) {
    case ScalarType::Float:
      return tf32 ? Type::tf32 : Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      STD_TORCH_CHECK(false, "d2ls_fast: the CUDA kernels take float32, bfloat16 and float16 pixels");
  }
}

// The device of a tensor, made the current one while this lives, and its current stream.
struct OnDevice {
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {
    const int index = tensor.get_device_index();
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index, &stream) == 0, "d2ls_fast: no current CUDA stream");
    device.stream = static_cast<cudaStream_t>(stream);
    STD_TORCH_CHECK(
        cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, index) == cudaSuccess &&
            cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index) == cudaSuccess,
        "d2ls_fast: CUDA device ", index, " does not answer");
  }
  torch::stable::accelerator::DeviceGuard guard;
  Device device{};
};

// Tensors as the kernels want them, kept alive as long as the pointers into them are used: contiguous, at a multiple of
// 16 bytes, as the kernels' copies are.
class Kept {
 public:
  const void* typed(const Tensor& tensor, const Tensor& like, int64_t numel, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), "d2ls_fast: ", name, " must have the dtype of pixels");
    return pointer(tensor, numel, name);
  }

  const float* floats(const Tensor& tensor, int64_t numel, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "d2ls_fast: ", name, " must be float32");
    return static_cast<const float*>(pointer(tensor, numel, name));
  }

 private:
  const void* pointer(const Tensor& tensor, int64_t numel, const char* name) {
    STD_TORCH_CHECK(tensor.numel() == numel, "d2ls_fast: ", name, " must have ", numel, " elements, got ",
                    tensor.numel());
    tensors_.push_back(torch::stable::contiguous(tensor));
    if (reinterpret_cast<uintptr_t>(tensors_.back().const_data_ptr()) % 16 != 0) {
      tensors_.back() = torch::stable::clone(tensors_.back());
    }
    return tensors_.back().const_data_ptr();
  }

  std::vector<Tensor> tensors_;
};

inline float* pointer(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

inline void check(const Error& error) { STD_TORCH_CHECK(error.empty(), "d2ls_fast: ", error); }

// classify without outputs; `kept` keeps what it points to.
inline ClassifyCall classify_call(const Tensor& image, const Tensor& norm_weight, const Tensor& norm_bias,
                                  const Tensor& hyper, int64_t prototypes, const std::string& reduction, double eps,
                                  Kept* kept) {
  STD_TORCH_CHECK(image.dim() == 4 && image.numel() > 0, "d2ls_fast: pixels must be [B, h, w, C] and not empty");
  STD_TORCH_CHECK(hyper.dim() == 3 && prototypes > 0 && hyper.size(1) > 0 && hyper.size(1) % prototypes == 0,
                  "d2ls_fast: hyper must be [B, K * P, C / 16]");
  const int64_t c = image.size(3);
  ClassifyCall call{};
  call.type = type_of(image, false);
  call.reduction = reduction == "max"    ? Reduction::max
                   : reduction == "mean" ? Reduction::mean
                                         : Reduction::logsumexp;
  call.batch = image.size(0);
  call.height = static_cast<int>(image.size(1));
  call.width = static_cast<int>(image.size(2));
  call.channels = static_cast<int>(c);
  call.classes = static_cast<int>(hyper.size(1) / prototypes);
  call.prototypes = static_cast<int>(prototypes);
  call.eps = static_cast<float>(eps);
  call.x = kept->typed(image, image, image.numel(), "pixels");
  call.norm_weight = kept->floats(norm_weight, c / 4, "norm_weight");
  call.norm_bias = kept->floats(norm_bias, c / 4, "norm_bias");
  call.hyper = kept->floats(hyper, call.batch * hyper.size(1) * (c / 16), "hyper");
  return call;
}

}  // namespace d2ls::cuda
