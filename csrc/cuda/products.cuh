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

// Each calls f with a value of the type it finds: the kind of numbers, the smallest C that holds the channels, the device.
template <class F>
Error by_type(Type type, const F& f) {
  switch (type) {
    case Type::f32:
      return f(Float32());
    case Type::tf32:
      return f(RoundedFloat32());
    case Type::bf16:
      return f(Half<Bf16>());
    default:
      return f(Half<Fp16>());
  }
}

template <class F>
Error by_channels(int channels, const F& f) {
  if (channels % 16 != 0 || channels < 1 || channels > 256) {
    return "the CUDA kernels take channels in multiples of 16 up to 256, got " + std::to_string(channels);
  }
  return channels <= 64 ? f(std::integral_constant<int, 64>()) : f(std::integral_constant<int, 256>());
}

template <class F>
Error by_device(int major, const F& f) {
  switch (major) {
    case 8:
      return f(Ampere());
    case 9:
      return f(Hopper());
    case 10:
      return f(Blackwell());
    default:
      return "the CUDA kernels are for compute capability 8, 9 and 10, this device has " + std::to_string(major);
  }
}

// All three.
template <class F>
Error dispatch(Type type, int major, int channels, const F& f) {
  return by_type(type, [&](auto kind) {
    return by_device(major, [&](auto architecture) {
      return by_channels(channels, [&](auto c) -> Error { return f(kind, architecture, c); });
    });
  });
}

}  // namespace d2ls::cuda
