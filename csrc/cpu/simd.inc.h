// Vectors of floats in the compiler's own vector types: one source for every instruction set.
// Included inside the namespace of one instruction set; see isa_*.cpp.

constexpr int kLanes = D2LS_LANES;

template <int kCount>
struct VectorOf {
  typedef float Float __attribute__((vector_size(kCount * 4)));
  typedef uint32_t Bits __attribute__((vector_size(kCount * 4)));
  typedef int32_t Ints __attribute__((vector_size(kCount * 4)));
  typedef float Loose __attribute__((vector_size(kCount * 4), aligned(4), may_alias));
};

using Vec = VectorOf<kLanes>::Float;

template <int kCount = kLanes>
inline typename VectorOf<kCount>::Float load(const float* p) {
  return *reinterpret_cast<const typename VectorOf<kCount>::Loose*>(p);
}

template <class V>
inline void store(float* p, V v) {
  *reinterpret_cast<typename VectorOf<sizeof(V) / 4>::Loose*>(p) = v;
}

template <class V = Vec>
inline V splat(float v) {
  return V{} + v;
}

template <class V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}

inline float sum_lanes(Vec v) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) {
    sum += v[i];
  }
  return sum;
}

// e^x for x <= 88, within 2 units in the last place; 0 below the smallest normal number; NaN stays NaN.
template <class V>
inline V exponential(V x) {
  using Bits = typename VectorOf<sizeof(V) / 4>::Bits;
  const V lowest = splat<V>(-87.33654f);
  const V clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
  const V magic = splat<V>(12582912.0f);
  const V shifted = clamped * splat<V>(1.44269504088896341f) + magic;
  const V n = shifted - magic;
  V r = clamped - n * splat<V>(0.693359375f);
  r = r - n * splat<V>(-2.12194440e-4f);
  V poly = splat<V>(1.9875691500e-4f);
  poly = poly * r + splat<V>(1.3981999507e-3f);
  poly = poly * r + splat<V>(8.3334519073e-3f);
  poly = poly * r + splat<V>(4.1665795894e-2f);
  poly = poly * r + splat<V>(1.6666665459e-1f);
  poly = poly * r + splat<V>(5.0000001201e-1f);
  poly = poly * r * r + r + splat<V>(1.0f);
  const Bits exponent = (Bits)shifted << 23;  // the magic number's own low bits are zero
  const V result = (V)((Bits)poly + exponent);
  return x < lowest ? V{} : result;
}
