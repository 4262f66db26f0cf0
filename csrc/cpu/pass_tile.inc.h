// A tile of pixels of the pass: its memory, loading it, and its products with the dictionary's matrices.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// Pixels in a tile: with C = 256 the tile, its scores and the dictionary side fit in a second-level cache of 1 MB.
constexpr int64_t kTile = 64;

// Hands out the parts of a chunk's scratch memory; without memory it only counts.
struct Arena {
  float* memory;
  int64_t used;
  float* take(int64_t floats) {
    float* part = memory == nullptr ? nullptr : memory + used;
    used += (floats + 15) / 16 * 16;
    return part;
  }
};

// Pixels are Elements and products take Factors: see factors_*.inc.h.
struct Tile {
  Tile(const PassSizes& s, bool backward, Arena* arena) {
    const auto floats = [&](int64_t columns) { return arena->take(kTile * columns); };
    const auto pixels = [&](int64_t columns) {
      return reinterpret_cast<Element*>(arena->take(kTile * columns * static_cast<int64_t>(sizeof(Element)) / 4));
    };
    for (Element** part : {&x, &y, &refined, &again}) *part = pixels(s.channels);
    score = floats(s.rows);
    weight = floats(s.groups);
    if (backward || kRounded) {
      normal = floats(s.channels);
    }
    if (backward) {
      for (float** part : {&output, &through}) *part = floats(s.channels);
      score_grad = floats(s.rows);
      weight_grad = floats(s.groups);
    }
    if (kRounded) {
      const int64_t narrow = s.rows > s.groups ? s.rows : s.groups;
      room = pixels(narrow > s.channels ? narrow : s.channels);
      narrow_room = reinterpret_cast<Factor*>(pixels(narrow));
      wide_room = reinterpret_cast<Factor*>(pixels(s.channels));
    }
  }
  Element* x;        // [T, Cp] pixels, where they cannot be read in place
  Element* y;        // [T, Cp] pixels + pe
  Element* refined;  // [T, Cp] x', where it cannot be written in place
  Element* again;    // [T, Cp] x' + pe
  float* score;      // [T, Jp]
  float* weight;     // [T, groups]
  float* normal = nullptr;  // [T, Cp] normalised u
  // backward
  float* output = nullptr;       // [T, Cp]
  float* through = nullptr;      // [T, Cp]
  float* score_grad = nullptr;   // [T, Jp]
  float* weight_grad = nullptr;  // [T, groups]
  // where float32 matrices are rounded to Elements and paired to Factors
  Element* room = nullptr;        // [T, any]
  Factor* narrow_room = nullptr;  // [T, Jp] or [T, groups]
  Factor* wide_room = nullptr;    // [T, Cp]
};

inline int64_t scratch_floats(const PassSizes& s, bool backward) {
  Arena count{nullptr, 0};
  Tile(s, backward, &count);
  return count.used;
}

inline void clear(float* p, int64_t count) {
  if (p != nullptr) {
    __builtin_memset(p, 0, count * 4);
  }
}

// Float32 rows of tile pixels: read in place where the memory already is such rows, else widened into a buffer.
inline bool in_place(const PassShape& s, const PassSizes& p) { return s.dtype == Dtype::f32 && s.channels == p.channels; }

inline Rows load_rows(const PassShape& s, const PassSizes& p, const void* source, int64_t at, int64_t rows,
                      float* buffer) {
  if (in_place(s, p)) {
    return {static_cast<const float*>(source) + at, s.channels};
  }
  for (int64_t n = 0; n < rows; ++n) {
    widen(s.dtype, source, at + n * s.channels, buffer + n * p.channels, s.channels);
    clear(buffer + n * p.channels + s.channels, p.channels - s.channels);
  }
  return {buffer, p.channels};
}

// out [T, Cp] = x + pe
inline void add_pe(const PassInputs& in, const PassSizes& p, int64_t pe_at, int64_t rows, Pixels x, Element* out) {
  const Pixels pe = load_rows(in.shape, p, in.pixel_pe, pe_at, rows, out);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      store(out + n * p.channels + c, load(x.data + n * x.stride + c) + load(pe.data + n * pe.stride + c));
    }
  }
}

// out [T, columns] (+)= left times a packed matrix of `depth` rows
inline void product(int64_t rows, Pixels left, int64_t depth, const float* packed, int64_t columns, float* out,
                    bool accumulate) {
  gemm(rows, columns, depth_of(depth), left_factor(left), factors(packed), columns, out, columns, accumulate);
}

// out [count, columns] += left [T, >= count] transposed times right [T, columns]
inline void product_over_pixels(int64_t rows, int64_t count, RowsOf<Factor> left, RowsOf<Factor> right,
                                int64_t columns, float* out) {
  gemm(count, columns, depth_of(rows), {left.data, 1, left.stride}, right.data, right.stride, out, columns, true);
}
