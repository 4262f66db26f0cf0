// Small matrix products in double, of factors in double or float32 and of any size.
// Included inside the namespace of one instruction set; see isa_*.cpp.

constexpr int kWide = kLanes / 2;  // doubles in a vector

typedef double Wide __attribute__((vector_size(kWide * 8)));
typedef double WideLoose __attribute__((vector_size(kWide * 8), aligned(8), may_alias));
typedef float HalfLoose __attribute__((vector_size(kWide * 4), aligned(4), may_alias));

// A vector, or a single number where less than a vector is left.
template <class V>
inline V load_as(const double* p) {
  return *reinterpret_cast<const WideLoose*>(p);
}
template <>
inline double load_as<double>(const double* p) {
  return *p;
}
template <class V>
inline V load_as(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const HalfLoose*>(p), Wide);
}
template <>
inline double load_as<double>(const float* p) {
  return *p;
}
inline void store_wide(double* p, Wide v) { *reinterpret_cast<WideLoose*>(p) = v; }
inline void store_wide(double* p, double v) { *p = v; }

inline double sum_wide(Wide v) {
  double sum = 0.0;
  for (int i = 0; i < kWide; ++i) {
    sum += v[i];
  }
  return sum;
}

struct Doubles {
  const double* data;
  int64_t row;
  int64_t column;
};

#if defined(D2LS_REGISTERS_16)
constexpr int kProductRows = 4;
constexpr int kDotColumns = 2;
#else
constexpr int kProductRows = 8;
constexpr int kDotColumns = 4;
#endif
constexpr int kProductVecs = 2;
constexpr int kDotRows = 4;

template <int kRows, int kVecs, class V, class T>
inline void product_block(int64_t depth, Doubles a, const T* b, int64_t b_stride, double* out, int64_t stride, bool add) {
  constexpr int64_t kStep = sizeof(V) / sizeof(double);
  V sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) sum[r][v] = V{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    V row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) row[v] = load_as<V>(b + k * b_stride + v * kStep);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V factor = V{} + a.data[r * a.row + k * a.column];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      double* to = out + r * stride + v * kStep;
      store_wide(to, add ? load_as<V>(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int kVecs, class V, class T>
inline void product_rows(int64_t rows, int64_t depth, Doubles a, const T* b, int64_t b_stride, double* out,
                         int64_t stride, bool add) {
  while (rows > 0) {
    int64_t done = rows < kProductRows ? rows : kProductRows;
    switch (done) {
#if !defined(D2LS_REGISTERS_16)
      case 8: product_block<8, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      case 7: product_block<7, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      case 6: product_block<6, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      case 5: product_block<5, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
#endif
      case 4: product_block<4, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      case 3: product_block<3, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      case 2: product_block<2, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
      default: product_block<1, kVecs, V>(depth, a, b, b_stride, out, stride, add); break;
    }
    a.data += done * a.row;
    out += done * stride;
    rows -= done;
  }
}

// out [M, N] (+)= A [M, K] B [K, N]; A has any strides, so that it may be a transpose, B and out have rows of numbers.
template <class T>
inline void product(int64_t rows, int64_t columns, int64_t depth, Doubles a, const T* b, int64_t b_stride, double* out,
                    int64_t stride, bool add) {
  int64_t n = 0;
  for (; n + kProductVecs * kWide <= columns; n += kProductVecs * kWide) {
    product_rows<kProductVecs, Wide>(rows, depth, a, b + n, b_stride, out + n, stride, add);
  }
  for (; n + kWide <= columns; n += kWide) {
    product_rows<1, Wide>(rows, depth, a, b + n, b_stride, out + n, stride, add);
  }
  for (; n < columns; ++n) {
    product_rows<1, double>(rows, depth, a, b + n, b_stride, out + n, stride, add);
  }
}

template <int kRows, int kColumns>
inline void dot_block(int64_t depth, const double* a, int64_t a_stride, const float* b, int64_t b_stride, double* out,
                      int64_t stride) {
  Wide sum[kRows][kColumns];
  double rest[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sum[r][c] = Wide{};
  }
  int64_t k = 0;
  for (; k + kWide <= depth; k += kWide) {
    Wide column[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) column[c] = load_as<Wide>(b + c * b_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Wide row = load_as<Wide>(a + r * a_stride + k);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) sum[r][c] += row * column[c];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      rest[r][c] = 0.0;
      for (int64_t i = k; i < depth; ++i) rest[r][c] += a[r * a_stride + i] * b[c * b_stride + i];
      out[r * stride + c] = sum_wide(sum[r][c]) + rest[r][c];
    }
  }
}

template <int kColumns>
inline void dot_rows(int64_t rows, int64_t depth, const double* a, int64_t a_stride, const float* b, int64_t b_stride,
                     double* out, int64_t stride) {
  int64_t r = 0;
  for (; r + kDotRows <= rows; r += kDotRows) {
    dot_block<kDotRows, kColumns>(depth, a + r * a_stride, a_stride, b, b_stride, out + r * stride, stride);
  }
  a += r * a_stride;
  out += r * stride;
  switch (rows - r) {
    case 3: dot_block<3, kColumns>(depth, a, a_stride, b, b_stride, out, stride); break;
    case 2: dot_block<2, kColumns>(depth, a, a_stride, b, b_stride, out, stride); break;
    case 1: dot_block<1, kColumns>(depth, a, a_stride, b, b_stride, out, stride); break;
    default: break;
  }
}

// out [M, N] = A [M, K] B', B [N, K]: rows times rows, as a linear layer's weight is stored.
inline void dots(int64_t rows, int64_t columns, int64_t depth, const double* a, int64_t a_stride, const float* b,
                 int64_t b_stride, double* out, int64_t stride) {
  int64_t n = 0;
  for (; n + kDotColumns <= columns; n += kDotColumns) {
    dot_rows<kDotColumns>(rows, depth, a, a_stride, b + n * b_stride, b_stride, out + n, stride);
  }
  for (; n < columns; ++n) {
    dot_rows<1>(rows, depth, a, a_stride, b + n * b_stride, b_stride, out + n, stride);
  }
}
