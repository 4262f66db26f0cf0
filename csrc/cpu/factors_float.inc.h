// The tile matrices of the pass as they enter products: float32, as they are.
// Included inside the namespace of one instruction set; see isa_*.cpp, and factors_pairs.inc.h for the other kind.

using Element = float;  // what pixels of a tile are kept in
using Factor = float;   // what products take
using Pixels = RowsOf<Element>;
constexpr bool kRounded = false;  // whether those are narrower than the float32 sums that become them

// Whether the memory of a tensor of pixels already is rows of Elements.
inline bool elements_in_place(const PassShape& s, const PassSizes& p) {
  return s.dtype == Dtype::f32 && s.channels == p.channels;
}

// Factors along a sum of `count` products.
inline int64_t depth_of(int64_t count) { return count; }

inline const Factor* factors(const float* packed) { return packed; }
inline void pack_factors(float*, int64_t, int64_t) {}
inline void round_factors(float*, int64_t) {}

// [T, columns] as the left factor, whose rows are the pixels.
inline Strided left_factor(Rows matrix) { return {matrix.data, matrix.stride, 1}; }

// [T, columns] in Elements, and as factors along the pixels; `room` is used where those are something else.
inline Rows elements(int64_t, int64_t columns, const float* matrix, Element*) { return {matrix, columns}; }
inline Rows along_pixels(int64_t, int64_t, Rows matrix, Factor*) { return matrix; }

// Where float32 sums that end as `elements` are formed.
inline float* sums_for(Element* elements, float*) { return elements; }

// A finished row of pixels: stored, unless in place, and rounded as it was stored.
inline void finish_row(const PassShape& s, Element* row, void* stored, int64_t at) {
  if (stored != nullptr) {
    narrow(s.dtype, row, stored, at, s.channels);
  }
  if (s.dtype != Dtype::f32) {
    round_to(s.dtype, row, s.channels);
  }
}
