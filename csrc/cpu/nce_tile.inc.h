// A tile of pixels of the InfoNCE: its memory, labels and scores; see nce.h for the formulas.
// Included inside the namespace of one instruction set; see isa_*.cpp.
//
// The scores of a tile come out of the product pixel by pixel and are turned at once, so that pixels are the lanes of
// everything that follows: softmax over the entries and over the pixels alike, with no sum across lanes.

constexpr int64_t kNceTile = 64;
// Columns of the turned scores, and a cache line more, so that their rows do not all fall into the same cache set.
constexpr int64_t kNceColumns = kNceTile + 16;
constexpr float kShortest = 1e-12f;  // what a shorter vector is divided by
constexpr float kLowest = -3.0e38f;  // below every score, and finite: lowest - lowest is not NaN

inline int64_t padded_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

struct NceTile {
  float* x;        // [T, Cp]       widened, where the memory is not such rows
  float* product;  // [T, Jp]
  float* score;    // [J, columns]
  float* top;      // [J, lanes]    running maximum of the columns; forward
  float* sum;      // [J, lanes]
  float* grad;     // [J, columns]  of the scores; backward
  float* output;   // [T, Cp]       gradient of x, where it cannot be written in place; backward
};

struct NceSizes {
  NceSizes(const NceInputs& in, bool backward)
      : channels(padded_to_lanes(in.channels)),
        entries(padded_to_lanes(in.vectors())),
        in_place(in.dtype == Dtype::f32 && in.channels == channels),
        x(in_place ? 0 : kNceTile * channels),
        product(kNceTile * entries),
        score(in.vectors() * kNceColumns),
        column(backward || !in.columns ? 0 : in.vectors() * kLanes),
        grad(backward ? score : 0),
        output(backward ? x : 0) {}
  int64_t total() const { return x + product + score + 2 * column + grad + output; }
  int64_t channels, entries;  // padded
  bool in_place;
  int64_t x, product, score, column, grad, output;
};

inline int64_t nce_scratch(const NceInputs& in, bool backward) { return NceSizes(in, backward).total(); }

inline NceTile carve_nce(const NceSizes& s, float* at) {
  NceTile tile{};
  tile.x = at;
  tile.product = tile.x + s.x;
  tile.score = tile.product + s.product;
  tile.top = tile.score + s.score;
  tile.sum = tile.top + s.column;
  tile.grad = tile.sum + s.column;
  tile.output = tile.grad + s.grad;
  return tile;
}

// The labels of a tile's pixels.
struct NceLabels {
  int64_t of[kNceTile];    // a class; 0 where there is none
  float used[kNceTile];    // 1 or 0
  int64_t labelled;
};

inline NceLabels labels_of(const NceInputs& in, int64_t at, int64_t rows, int64_t* count) {
  NceLabels label;
  label.labelled = 0;
  for (int64_t n = 0; n < kNceTile; ++n) {
    const int64_t y = n < rows ? in.target[at + n] : in.ignore_index;
    const bool used = y != in.ignore_index && y >= 0 && y < in.classes;
    label.of[n] = used ? y : 0;
    label.used[n] = used ? 1.0f : 0.0f;
    label.labelled += used;
    if (count != nullptr && y != in.ignore_index) {
      ++count[used ? y : in.classes];
    }
  }
  return label;
}

inline Rows nce_pixels(const NceInputs& in, const NceSizes& s, int64_t at, int64_t rows, float* buffer) {
  if (s.in_place) {
    return {static_cast<const float*>(in.features) + at * in.channels, in.channels};
  }
  for (int64_t n = 0; n < rows; ++n) {
    widen(in.dtype, in.features, (at + n) * in.channels, buffer + n * s.channels, in.channels);
    clear(buffer + n * s.channels + in.channels, s.channels - in.channels);
  }
  return {buffer, s.channels};
}

// tile.score, and 1 / max(|x|, shortest) and |x| of every pixel; zero beyond the last one.
inline void score_tile(const NceInputs& in, const NceSizes& s, const NcePacked& packed, int64_t rows, Rows x,
                       const NceTile& tile, float* inverse, float* length) {
  gemm(rows, s.entries, in.channels, {x.data, x.stride, 1}, packed.entries_t, s.entries, tile.product, s.entries, false);
  for (int64_t n = 0; n < kNceTile; ++n) {
    Vec square{};
    for (int64_t c = 0; c < s.channels && n < rows; c += kLanes) {
      const Vec v = load(x.data + n * x.stride + c);
      square += v * v;
    }
    length[n] = __builtin_sqrtf(sum_lanes(square));
    inverse[n] = n < rows ? 1.0f / (length[n] > kShortest ? length[n] : kShortest) : 0.0f;
    const float* from = tile.product + (n < rows ? n : 0) * s.entries;
    for (int64_t j = 0; j < in.vectors(); ++j) {
      tile.score[j * kNceColumns + n] = n < rows ? from[j] * inverse[n] : 0.0f;
    }
  }
}

// Log-sum-exp over all entries of the pixels n .. n + lanes.
inline Vec row_log_sum_exp(const NceInputs& in, const NceTile& tile, int64_t n) {
  Vec top = load(tile.score + n), sum{};
  for (int64_t j = 1; j < in.vectors(); ++j) {
    top = maximum(load(tile.score + j * kNceColumns + n), top);
  }
  for (int64_t j = 0; j < in.vectors(); ++j) {
    sum += exponential(load(tile.score + j * kNceColumns + n) - top);
  }
  return top + logarithm(sum);
}

// Score of entry p of their own class, of the pixels n .. n + lanes.
inline Vec own_score(const NceInputs& in, const NceTile& tile, const NceLabels& label, int64_t n, int64_t p) {
  Vec score;
  for (int i = 0; i < kLanes; ++i) {
    score[i] = tile.score[(label.of[n + i] * in.prototypes + p) * kNceColumns + n + i];
  }
  return score;
}

// S of their own class, of the pixels n .. n + lanes.
inline Vec class_score(const NceInputs& in, const NceTile& tile, const NceLabels& label, int64_t n) {
  Vec top = own_score(in, tile, label, n, 0);
  if (in.prototypes == 1) {
    return top;
  }
  for (int64_t p = 1; p < in.prototypes; ++p) {
    top = maximum(own_score(in, tile, label, n, p), top);
  }
  Vec sum{};
  for (int64_t p = 0; p < in.prototypes; ++p) {
    sum += exponential(own_score(in, tile, label, n, p) - top);
  }
  return top + logarithm(sum);
}
