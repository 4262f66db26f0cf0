// 16-bit floating-point numbers, two in a word, and the elementary functions.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/instructions/device.cuh"
#ifndef __CUDACC__
#include "cuda/emulator/numbers.h"
#endif

namespace d2ls::cuda {

struct Bf16 {
  uint16_t bits;
#ifndef __CUDACC__
  static float number(uint16_t bits) { return emulator::bf16_from(bits); }
#endif
};
struct Fp16 {
  uint16_t bits;
#ifndef __CUDACC__
  static float number(uint16_t bits) { return emulator::fp16_from(bits); }
#endif
};

template <class T>
constexpr bool is_bf16 = false;
template <>
inline constexpr bool is_bf16<Bf16> = true;

constexpr float log2_e = 1.4426950408889634f;

// Two numbers of type T in a word, the first in the low half.
template <class T>
struct Pair;

#ifdef __CUDACC__

template <>
struct Pair<Bf16> {
  static D2LS_DEVICE uint32_t pack(float first, float second) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(second), "f"(first));
    return word;
  }
  static D2LS_DEVICE float first(uint32_t word) { return __uint_as_float(word << 16); }
  static D2LS_DEVICE float second(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
  // Rounded once. sm_80 has no add for bfloat16, but a multiply-add.
  static D2LS_DEVICE uint32_t add(uint32_t a, uint32_t b) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return sum;
  }
};

template <>
struct Pair<Fp16> {
  static D2LS_DEVICE uint32_t pack(float first, float second) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(second), "f"(first));
    return word;
  }
  static D2LS_DEVICE float first(uint32_t word) {
    float value;
    asm("{.reg .f16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}\n" : "=f"(value) : "r"(word));
    return value;
  }
  static D2LS_DEVICE float second(uint32_t word) { return first(word >> 16); }
  static D2LS_DEVICE uint32_t add(uint32_t a, uint32_t b) {
    uint32_t sum;
    asm("add.rn.f16x2 %0, %1, %2;\n" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
  }
};

D2LS_DEVICE float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
D2LS_DEVICE float inverse_root(float x) { return rsqrtf(x); }
// To one unit in the last place, without the call that an exact division makes for numbers near the ends of the range.
D2LS_DEVICE float inverse(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
D2LS_DEVICE float word_as_float(uint32_t word) { return __uint_as_float(word); }
D2LS_DEVICE uint32_t float_as_word(float value) { return __float_as_uint(value); }
D2LS_DEVICE constexpr float infinity() { return __builtin_huge_valf(); }

// The nearest number with TF32's ten bits of mantissa.
D2LS_DEVICE uint32_t tf32(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(word) : "f"(value));
  return word;
}

#else

template <>
struct Pair<Bf16> : emulator::Pair<emulator::bf16_from, emulator::bf16_to> {};
template <>
struct Pair<Fp16> : emulator::Pair<emulator::fp16_from, emulator::fp16_to> {};

using emulator::float_as_word;
using emulator::tf32;
using emulator::word_as_float;
inline float power_of_two(float x) { return std::exp2(x); }
inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }
inline float inverse(float x) { return 1.0f / x; }
inline constexpr float infinity() { return std::numeric_limits<float>::infinity(); }

#endif

}  // namespace d2ls::cuda
