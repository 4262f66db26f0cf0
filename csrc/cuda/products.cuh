// Which products a kernel is made of: by the numbers' type and the kind of GPU.
#pragma once

#include <type_traits>


#include "cuda/device.h"
#include "cuda/products_warp_float.cuh"
#include "cuda/products_warpgroup.cuh"

namespace d2ls::cuda {

// The types of Type: of the numbers in memory, and of their products.
struct Float32 {
  using Number = float;
  static constexpr int passes = 3;
};
struct RoundedFloat32 {
  using Number = float;
  static constexpr int passes = 1;
};
template <class T>
struct Half {
  using Number = T;
  static constexpr int passes = 1;
};

// wgmma takes float32 factors only with the summed index contiguous, which pixels as values are not.
template <class Kind, class Architecture>
using Products = std::conditional_t<Architecture::warpgroup_products && sizeof(typename Kind::Number) == 2,
                                    WarpgroupProducts<typename Kind::Number>,
                                    WarpProducts<typename Kind::Number, Kind::passes>>;

// Calls f<Kind, Architecture, C>() for the type, the device and the smallest C that holds the channels.
template <class F>
Error dispatch(Type type, int major, int channels, const F& f) {
  const auto by_channels = [&](auto kind, auto architecture) -> Error {
    if (channels % 16 != 0 || channels < 1 || channels > 256) {
      return "the CUDA kernels take channels in multiples of 16 up to 256, got " + std::to_string(channels);
    }
    if (channels <= 64) {
      return f(kind, architecture, std::integral_constant<int, 64>());
    }
    return f(kind, architecture, std::integral_constant<int, 256>());
  };
  const auto by_device = [&](auto kind) -> Error {
    switch (major) {
      case 8:
        return by_channels(kind, Ampere());
      case 9:
        return by_channels(kind, Hopper());
      case 10:
        return by_channels(kind, Blackwell());
      default:
        return "the CUDA kernels are for compute capability 8, 9 and 10, this device has " + std::to_string(major);
    }
  };
  switch (type) {
    case Type::f32:
      return by_device(Float32());
    case Type::tf32:
      return by_device(RoundedFloat32());
    case Type::bf16:
      return by_device(Half<Bf16>());
    default:
      return by_device(Half<Fp16>());
  }
}

}  // namespace d2ls::cuda
