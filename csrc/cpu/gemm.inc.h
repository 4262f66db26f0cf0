// C [M, N] (+)= A [M, K] B [K, N] for matrices that live in the caches. A has any strides, so that it may be a transpose;
// B and C are rows of whole vectors. Register blocks of kBlockRows x kBlockVecs accumulators. The factors T are float, or
// pairs of bfloat16 along K (pairs.inc.h), and K then counts pairs.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// 32 vector registers hold 6 x 4 accumulators, a row of B and a broadcast of A; 16 registers hold 6 x 2.
#if defined(D2LS_REGISTERS_16)
constexpr int kBlockVecs = 2;
#else
constexpr int kBlockVecs = 4;
#endif
constexpr int kBlockRows = 6;
// Depth of B handled at a time: with the block's columns it stays in the first-level cache. A block is summed from zero and
// then added, so that rounding errors grow with the depth of a block and the number of blocks, not with their product.
constexpr int64_t kDepth = 64;

inline Vec broadcast(const float* p) { return splat(*p); }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return sum + a * b; }

template <int kRows, int kVecs, class T>
inline void gemm_block(int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_stride,
                       float* c, int64_t c_stride, bool accumulate) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      sum[r][v] = Vec{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    decltype(broadcast(a)) row[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      row[v] = load(b + k * b_stride + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto factor = broadcast(a + r * a_row + k * a_depth);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = multiply_add(factor, row[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* to = c + r * c_stride + v * kLanes;
      store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int kVecs, class T>
inline void gemm_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b,
                      int64_t b_stride, float* c, int64_t c_stride, bool accumulate) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows) {
    gemm_block<kBlockRows, kVecs>(depth, a + r * a_row, a_row, a_depth, b, b_stride, c + r * c_stride, c_stride,
                                  accumulate);
  }
  const T* a_rest = a + r * a_row;
  float* c_rest = c + r * c_stride;
  switch (rows - r) {
    case 5: gemm_block<5, kVecs>(depth, a_rest, a_row, a_depth, b, b_stride, c_rest, c_stride, accumulate); break;
    case 4: gemm_block<4, kVecs>(depth, a_rest, a_row, a_depth, b, b_stride, c_rest, c_stride, accumulate); break;
    case 3: gemm_block<3, kVecs>(depth, a_rest, a_row, a_depth, b, b_stride, c_rest, c_stride, accumulate); break;
    case 2: gemm_block<2, kVecs>(depth, a_rest, a_row, a_depth, b, b_stride, c_rest, c_stride, accumulate); break;
    case 1: gemm_block<1, kVecs>(depth, a_rest, a_row, a_depth, b, b_stride, c_rest, c_stride, accumulate); break;
    default: break;
  }
}

template <class T>
struct StridedOf {
  const T* data;
  int64_t row;
  int64_t depth;
};
using Strided = StridedOf<float>;

template <class T>
struct RowsOf {
  const T* data;
  int64_t stride;
};
using Rows = RowsOf<float>;

template <class T>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, StridedOf<T> a, const T* b, int64_t b_stride, float* c,
                 int64_t c_stride, bool accumulate) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t depth_here = depth - k < kDepth ? depth - k : kDepth;
    const T* a_here = a.data + k * a.depth;
    const bool add = accumulate || k > 0;
    for (int64_t n = 0; n < columns;) {
      const T* b_here = b + k * b_stride + n;
      const int64_t vecs = (columns - n) / kLanes;
      if (vecs >= kBlockVecs) {
        gemm_rows<kBlockVecs>(rows, depth_here, a_here, a.row, a.depth, b_here, b_stride, c + n, c_stride, add);
        n += kBlockVecs * kLanes;
      } else if (kBlockVecs > 2 && vecs >= 2) {
        gemm_rows<2>(rows, depth_here, a_here, a.row, a.depth, b_here, b_stride, c + n, c_stride, add);
        n += 2 * kLanes;
      } else {
        gemm_rows<1>(rows, depth_here, a_here, a.row, a.depth, b_here, b_stride, c + n, c_stride, add);
        n += kLanes;
      }
    }
  }
}
