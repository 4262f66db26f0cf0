// Vectors of D2LS_LANES floats, in the compiler's own vector types: one source for every instruction set.
// Included inside the namespace of one instruction set; see isa_*.cpp.

constexpr int kLanes = D2LS_LANES;

typedef float Vec __attribute__((vector_size(D2LS_LANES * 4)));
typedef uint32_t BitVec __attribute__((vector_size(D2LS_LANES * 4)));
typedef float LooseVec __attribute__((vector_size(D2LS_LANES * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec splat(float v) { return Vec{} + v; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// e^x for x <= 88, within 2 units in the last place; 0 below the smallest normal number; NaN stays NaN.
inline Vec exponential(Vec x) {
  const Vec lowest = splat(-87.33654f);
  const Vec clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
  const Vec magic = splat(12582912.0f);
  const Vec shifted = clamped * splat(1.44269504088896341f) + magic;
  const Vec n = shifted - magic;
  Vec r = clamped - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  Vec poly = splat(1.9875691500e-4f);
  poly = poly * r + splat(1.3981999507e-3f);
  poly = poly * r + splat(8.3334519073e-3f);
  poly = poly * r + splat(4.1665795894e-2f);
  poly = poly * r + splat(1.6666665459e-1f);
  poly = poly * r + splat(5.0000001201e-1f);
  poly = poly * r * r + r + splat(1.0f);
  const BitVec exponent = (BitVec)shifted << 23;  // the magic number's own low bits are zero
  const Vec result = (Vec)((BitVec)poly + exponent);
  return x < lowest ? Vec{} : result;
}
