// bfloat16 and float16 to and from float32, written so that the compiler vectorises the loops.
// Included inside the namespace of one instruction set; see isa_*.cpp.

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

inline float bf16_to_float(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

inline float f16_to_float(uint16_t h) {
  // Shift exponent and mantissa into place; the multiplication rescales the exponent's bias and normalises subnormals.
  const float magnitude = from_bits(static_cast<uint32_t>(h & 0x7fffu) << 13) * from_bits(0x77800000u);
  const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(to_bits(magnitude) | special | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

inline uint16_t float_to_f16(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal range: rebias and round to nearest even. Below it: adding a power of two aligns the mantissa for us.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : (finite > 0x7c00u ? 0x7c00u : finite)));
}

inline void widen(Dtype dtype, const void* src, int64_t offset, float* dst, int64_t count) {
  if (dtype == Dtype::f32) {
    __builtin_memcpy(dst, static_cast<const float*>(src) + offset, count * 4);
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(src) + offset;
  if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < count; ++i) dst[i] = bf16_to_float(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = f16_to_float(from[i]);
  }
}

inline void narrow(Dtype dtype, const float* src, void* dst, int64_t offset, int64_t count) {
  if (dtype == Dtype::f32) {
    __builtin_memcpy(static_cast<float*>(dst) + offset, src, count * 4);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(dst) + offset;
  if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(src[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = float_to_f16(src[i]);
  }
}

// What a float32 row becomes when it is stored and read again.
inline void round_to(Dtype dtype, float* values, int64_t count) {
  if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < count; ++i) values[i] = bf16_to_float(float_to_bf16(values[i]));
  } else if (dtype == Dtype::f16) {
    for (int64_t i = 0; i < count; ++i) values[i] = f16_to_float(float_to_f16(values[i]));
  }
}
