// bfloat16 as the processor multiplies it: in pairs whose two products are added to a float32 sum.
// Included inside the namespace of an instruction set that has such products; see isa_avx512_bf16.cpp.

struct Bf16 {
  uint16_t bits;
};

// Two bfloat16 that are multiplied with another two, the first one in the lower half.
struct Pair {
  uint32_t bits;
};

using Bits = VectorOf<kLanes>::Bits;
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
typedef uint32_t LoosePair __attribute__((aligned(2), may_alias));
typedef uint32_t LoosePairs __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));

inline Bits halves(const Bf16* p) { return __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits); }

inline Vec load(const Bf16* p) { return (Vec)(halves(p) << 16); }
inline Bits load(const Pair* p) { return *reinterpret_cast<const LoosePairs*>(p); }
inline Bits broadcast(const Pair* p) { return Bits{} + *reinterpret_cast<const LoosePair*>(p); }

// To nearest, ties to even; numbers below the smallest normal one become zero.
inline Halves to_halves(Vec v) { return (Halves)(__m256i)_mm512_cvtneps_pbh((__m512)v); }
inline void store(Bf16* p, Vec v) { *reinterpret_cast<Halves*>(p) = to_halves(v); }
inline Bits rounded(Vec v) { return __builtin_convertvector(to_halves(v), Bits); }

inline void store(Pair* p, Bits v) { *reinterpret_cast<LoosePairs*>(p) = v; }

// sum + the two products of every lane
inline Vec multiply_add(Bits a, Bits b, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Pairs of a lane each from two rows; without a second row its halves are zero.
inline Bits pair_lanes(const Bf16* first, const Bf16* second) {
  return second == nullptr ? halves(first) : halves(first) | halves(second) << 16;
}

inline Bits pair_lanes(const float* first, const float* second) {
  return rounded(load(first)) | (second == nullptr ? Bits{} : rounded(load(second)) << 16);
}

// out [rows / 2, columns] = rows 2 i and 2 i + 1 in pairs, zero for the one that is missing at the end. In place is fine:
// a row is written after both its sources, and ends before the next ones begin.
template <class T>
inline void pair_rows(int64_t rows, int64_t columns, const T* matrix, int64_t stride, Pair* out) {
  for (int64_t n = 0; n < rows; n += 2) {
    const T* first = matrix + n * stride;
    for (int64_t c = 0; c < columns; c += kLanes) {
      store(out + n / 2 * columns + c, pair_lanes(first + c, n + 1 < rows ? first + stride + c : nullptr));
    }
  }
}
