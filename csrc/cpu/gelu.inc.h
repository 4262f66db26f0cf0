// GELU with the normal distribution itself (not its tanh form), its slope, and a logarithm.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// 2^x for x <= 127, to 1e-7 of itself; the smallest normal number below -126.
template <class V>
inline V exponential_2(V x) {
  using Bits = typename VectorOf<sizeof(V) / 4>::Bits;
  const V lowest = splat<V>(-126.0f);
  const V clamped = x < lowest ? lowest : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves that integer in the low bits.
  const V shifted = clamped + splat<V>(12582912.0f);
  const V r = clamped - (shifted - splat<V>(12582912.0f));
  V poly = splat<V>(1.327647178e-3f);  // minimax on [-1/2, 1/2]
  poly = poly * r + splat<V>(9.675541333e-3f);
  poly = poly * r + splat<V>(5.550713274e-2f);
  poly = poly * r + splat<V>(2.402211972e-1f);
  poly = poly * r + splat<V>(6.931469671e-1f);
  poly = poly * r + splat<V>(1.000000072f);
  return (V)((Bits)poly + ((Bits)shifted << 23));  // the magic number's own low bits are zero
}

template <class V>
inline V magnitude(V x) {
  using Bits = typename VectorOf<sizeof(V) / 4>::Bits;
  return (V)((Bits)x & (Bits{} + 0x7fffffffu));
}

// Phi(-a) for a >= 0, the upper tail of the normal distribution, within 1e-7. Its logarithm is nearly a parabola: one
// polynomial (minimax on [0, 6] in the error of the result; falling beyond) serves the whole range.
template <class V>
inline V normal_tail(V a) {
  V log_2 = splat<V>(-2.772049398e-6f);
  log_2 = log_2 * a + splat<V>(3.862074927e-5f);
  log_2 = log_2 * a + splat<V>(-1.825476076e-4f);
  log_2 = log_2 * a + splat<V>(-1.458701304e-4f);
  log_2 = log_2 * a + splat<V>(7.075471781e-3f);
  log_2 = log_2 * a + splat<V>(-5.250502905e-2f);
  log_2 = log_2 * a + splat<V>(-4.592049073e-1f);
  log_2 = log_2 * a + splat<V>(-1.151105724f);
  log_2 = log_2 * a + splat<V>(-9.999999783e-1f);
  return exponential_2(log_2);
}

// GELU(x) = x Phi(x) = max(x, 0) - |x| Phi(-|x|), absolute error below 1e-7 max(1, x).
template <class V>
inline V gelu(V x) {
  const V a = magnitude(x);
  return maximum(x, V{}) - a * normal_tail(a);
}

// The same, and the slope Phi(x) + x phi(x).
template <class V>
inline V gelu_and_slope(V x, V* slope) {
  const V a = magnitude(x);
  const V tail = normal_tail(a);
  // phi(x) = 2^(-x^2 log2(e) / 2 - log2(2 pi) / 2)
  const V density = exponential_2(x * x * splat<V>(-0.72134752f) - splat<V>(1.32574806f));
  *slope = (x > V{} ? splat<V>(1.0f) - tail : tail) + x * density;
  return maximum(x, V{}) - a * tail;
}

// Natural logarithm of a normal x > 0, within 2e-7 max(1, |log x|).
template <class V>
inline V logarithm(V x) {
  using Bits = typename VectorOf<sizeof(V) / 4>::Bits;
  using Ints = typename VectorOf<sizeof(V) / 4>::Ints;
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  const Bits shifted = (Bits)x - (Bits{} + 0x3f3504f3u);
  const V e = __builtin_convertvector((Ints)shifted >> 23, V);
  const V f = (V)((shifted & (Bits{} + 0x007fffffu)) + (Bits{} + 0x3f3504f3u)) - splat<V>(1.0f);
  V poly = splat<V>(7.0376836292e-2f);
  poly = poly * f + splat<V>(-1.1514610310e-1f);
  poly = poly * f + splat<V>(1.1676998740e-1f);
  poly = poly * f + splat<V>(-1.2420140846e-1f);
  poly = poly * f + splat<V>(1.4249322787e-1f);
  poly = poly * f + splat<V>(-1.6668057665e-1f);
  poly = poly * f + splat<V>(2.0000714765e-1f);
  poly = poly * f + splat<V>(-2.4999993993e-1f);
  poly = poly * f + splat<V>(3.3333331174e-1f);
  const V square = f * f;
  return e * splat<V>(0.693147181f) + (f + (poly * f - splat<V>(0.5f)) * square);
}
