// 16-bit floating-point numbers and TF32 on the CPU, rounded as the GPU rounds them.
#pragma once

#include <cstdint>
#include <cstring>

namespace d2ls::cuda::emulator {

inline uint32_t float_as_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

inline float word_as_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline float bf16_from(uint16_t bits) { return word_as_float(static_cast<uint32_t>(bits) << 16); }

// To nearest, ties to even; NaN stays NaN.
inline uint16_t bf16_to(float value) {
  const uint32_t word = float_as_word(value);
  if (value != value) {
    return 0x7fff;
  }
  return static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline float fp16_from(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

inline uint16_t fp16_to(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

template <float (*From)(uint16_t), uint16_t (*To)(float)>
struct Pair {
  static uint32_t pack(float first, float second) { return To(first) | static_cast<uint32_t>(To(second)) << 16; }
  static float first(uint32_t word) { return From(static_cast<uint16_t>(word)); }
  static float second(uint32_t word) { return From(static_cast<uint16_t>(word >> 16)); }
  static uint32_t add(uint32_t a, uint32_t b) { return pack(first(a) + first(b), second(a) + second(b)); }
};

// Ties away from zero, as cvt.rna.
inline uint32_t tf32(float value) {
  const uint32_t word = float_as_word(value);
  return (word & 0x7f800000u) == 0x7f800000u ? word : (word + 0x1000u) & 0xffffe000u;
}

}  // namespace d2ls::cuda::emulator
