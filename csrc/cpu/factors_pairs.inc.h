// The tile matrices of the pass as they enter products: bfloat16 in pairs. What torch rounds to bfloat16 before a product
// is rounded here too; sums, softmax and norm are float32. Counterpart of factors_float.inc.h.

using Element = Bf16;
using Factor = Pair;
using Pixels = RowsOf<Element>;
constexpr bool kRounded = true;

inline bool elements_in_place(const PassShape& s, const PassSizes& p) { return s.channels == p.channels; }

inline int64_t depth_of(int64_t count) { return (count + 1) / 2; }

inline const Factor* factors(const float* packed) { return reinterpret_cast<const Pair*>(packed); }
inline void pack_factors(float* matrix, int64_t rows, int64_t columns) {
  pair_rows(rows, columns, matrix, columns, reinterpret_cast<Pair*>(matrix));
}

inline void round_factors(float* values, int64_t count) { round_to(Dtype::bf16, values, count); }

inline StridedOf<Pair> left_factor(Pixels matrix) {
  return {reinterpret_cast<const Pair*>(matrix.data), matrix.stride / 2, 1};
}

inline Pixels elements(int64_t rows, int64_t columns, const float* matrix, Bf16* room) {
  for (int64_t i = 0; i < rows * columns; i += kLanes) {
    store(room + i, load(matrix + i));
  }
  return {room, columns};
}

template <class T>
inline RowsOf<Pair> along_pixels(int64_t rows, int64_t columns, RowsOf<T> matrix, Pair* room) {
  pair_rows(rows, columns, matrix.data, matrix.stride, room);
  return {room, columns};
}

inline float* sums_for(Bf16*, float* room) { return room; }

inline void finish_row(const PassShape& s, const Bf16* row, void* stored, int64_t at) {
  if (stored != nullptr) {
    __builtin_memcpy(static_cast<Bf16*>(stored) + at, row, s.channels * 2);
  }
}

inline Pixels load_rows(const PassShape& s, const PassSizes& p, const void* source, int64_t at, int64_t rows,
                              Bf16* buffer) {
  const Bf16* from = static_cast<const Bf16*>(source) + at;
  if (elements_in_place(s, p)) {
    return {from, s.channels};
  }
  for (int64_t n = 0; n < rows; ++n) {
    __builtin_memcpy(buffer + n * p.channels, from + n * s.channels, s.channels * 2);
    __builtin_memset(buffer + n * p.channels + s.channels, 0, (p.channels - s.channels) * 2);
  }
  return {buffer, p.channels};
}
