// InfoNCE over a chunk of pixels, forward and backward; see nce.h for the formulas.
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

// Takes the labelled pixels of a tile into the running maximum and sum of every entry.
inline void columns_tile(const NceInputs& in, const NceTile& tile, const NceLabels& label) {
  for (int64_t j = 0; j < in.vectors(); ++j) {
    const float* score = tile.score + j * kNceColumns;
    const Vec before = load(tile.top + j * kLanes);
    Vec top = before;
    for (int64_t n = 0; n < kNceTile; n += kLanes) {
      const Vec s = load(score + n);
      top = maximum(load(label.used + n) > Vec{} ? s : splat(kLowest), top);
    }
    Vec sum = load(tile.sum + j * kLanes) * exponential(before - top);
    for (int64_t n = 0; n < kNceTile; n += kLanes) {
      const Vec below = load(score + n) - top;
      // An unused score may lie far above the top: its exponential must not overflow.
      sum += load(label.used + n) > Vec{} ? exponential(below < Vec{} ? below : Vec{}) : Vec{};
    }
    store(tile.top + j * kLanes, top);
    store(tile.sum + j * kLanes, sum);
  }
}

inline void nce_forward_chunk(const NceForward& call, const NcePacked& packed, Chunk chunk, const NcePartial& partial,
                              float* scratch) {
  const NceInputs& in = call.in;
  const NceSizes s(in, false);
  const NceTile tile = carve_nce(s, scratch);
  for (int64_t i = 0; i < s.column; i += kLanes) {
    store(tile.top + i, splat(kLowest));
    store(tile.sum + i, Vec{});
  }
  for (int64_t first = chunk.begin; first < chunk.end; first += kNceTile) {
    const int64_t rows = chunk.end - first < kNceTile ? chunk.end - first : kNceTile;
    const int64_t at = chunk.batch * in.pixels + first;
    const NceLabels label = labels_of(in, at, rows, partial.count);
    if (label.labelled == 0) {
      continue;
    }
    float inverse[kNceTile], length[kNceTile];
    const Rows x = nce_pixels(in, s, at, rows, tile.x);
    score_tile(in, s, packed, rows, x, tile, inverse, length);
    for (int64_t n = 0; n < kNceTile; n += kLanes) {
      const Vec positive = class_score(in, tile, label, n);
      const Vec loss = in.rows ? row_log_sum_exp(in, tile, n) - positive : Vec{};
      for (int i = 0; i < kLanes; ++i) {
        if (label.used[n + i] > 0.0f) {
          partial.loss[label.of[n + i]] += static_cast<double>(loss[i]);
          partial.positive[label.of[n + i]] += static_cast<double>(positive[i]);
        }
      }
    }
    if (in.columns) {
      columns_tile(in, tile, label);
    }
  }
  for (int64_t j = 0; j < in.vectors() && in.columns; ++j) {
    const Vec lanes = load(tile.top + j * kLanes);
    float top = kLowest;
    for (int i = 0; i < kLanes; ++i) {
      top = lanes[i] > top ? lanes[i] : top;
    }
    partial.top[j] = top;
    partial.sum[j] = sum_lanes(load(tile.sum + j * kLanes) * exponential(lanes - splat(top)));
  }
}

// tile.grad [J, columns]: the gradient of every score; returned is its sum with the scores, [T].
inline void score_gradients(const NceBackward& call, int64_t batch, const NceTile& tile, const NceLabels& label,
                            float* along) {
  const NceInputs& in = call.in;
  const float* lse = call.log_sum_exp + batch * in.classes;
  const float* grad_loss = call.grad_loss + batch * in.classes;
  const float* grad_positive = call.grad_positive + batch * in.classes;
  const float* grad_lse = call.grad_log_sum_exp + batch * in.classes;
  for (int64_t n = 0; n < kNceTile; n += kLanes) {
    const Vec used = load(label.used + n);
    Vec from_rows{}, own_share{};
    for (int i = 0; i < kLanes; ++i) {
      const int64_t y = label.of[n + i];
      from_rows[i] = in.rows ? grad_loss[y] : 0.0f;
      own_share[i] = (in.columns ? grad_positive[y] : 0.0f) - from_rows[i];
    }
    const Vec row_lse = in.rows ? row_log_sum_exp(in, tile, n) : Vec{};
    for (int64_t k = 0; k < in.classes; ++k) {
      for (int64_t j = k * in.prototypes; j < (k + 1) * in.prototypes; ++j) {
        const Vec s = load(tile.score + j * kNceColumns + n);
        Vec grad{};
        if (in.rows) {
          grad += from_rows * exponential(s - row_lse);
        }
        if (in.columns) {
          const Vec below = s - splat(lse[k]);  // positive only where a pixel is unused
          grad += splat(grad_lse[k]) * exponential(below < Vec{} ? below : Vec{});
        }
        store(tile.grad + j * kNceColumns + n, used > Vec{} ? grad : Vec{});
      }
    }
    const Vec positive = class_score(in, tile, label, n);
    for (int64_t p = 0; p < in.prototypes; ++p) {
      const Vec share = own_share * used * exponential(own_score(in, tile, label, n, p) - positive);
      for (int i = 0; i < kLanes; ++i) {
        tile.grad[(label.of[n + i] * in.prototypes + p) * kNceColumns + n + i] += share[i];
      }
    }
    Vec sum{};
    for (int64_t j = 0; j < in.vectors(); ++j) {
      sum += load(tile.grad + j * kNceColumns + n) * load(tile.score + j * kNceColumns + n);
    }
    store(along + n, sum);
  }
}

inline void nce_backward_chunk(const NceBackward& call, const NcePacked& packed, Chunk chunk, float* grad_entries,
                               float* scratch) {
  const NceInputs& in = call.in;
  const NceSizes s(in, true);
  const NceTile tile = carve_nce(s, scratch);
  clear(grad_entries, in.vectors() * s.channels);
  for (int64_t first = chunk.begin; first < chunk.end; first += kNceTile) {
    const int64_t rows = chunk.end - first < kNceTile ? chunk.end - first : kNceTile;
    const int64_t at = chunk.batch * in.pixels + first;
    const NceLabels label = labels_of(in, at, rows, nullptr);
    float* output = s.in_place ? static_cast<float*>(call.grad_features) + at * in.channels : tile.output;
    if (label.labelled == 0) {
      clear(output, rows * s.channels);
    } else {
      float inverse[kNceTile], length[kNceTile], along[kNceTile];
      const Rows x = nce_pixels(in, s, at, rows, tile.x);
      score_tile(in, s, packed, rows, x, tile, inverse, length);
      score_gradients(call, chunk.batch, tile, label, along);
      for (int64_t j = 0; j < in.vectors(); ++j) {
        float* grad = tile.grad + j * kNceColumns;
        for (int64_t n = 0; n < kNceTile; n += kLanes) {
          store(grad + n, load(grad + n) * load(inverse + n));
        }
      }
      for (int64_t n = 0; n < rows; ++n) {
        // The length of a vector shorter than that plays no part in its direction.
        const float slope = length[n] < kShortest ? 0.0f : along[n] * inverse[n] * inverse[n];
        for (int64_t c = 0; c < s.channels; c += kLanes) {
          store(output + n * s.channels + c, load(x.data + n * x.stride + c) * splat(-slope));
        }
      }
      gemm(rows, s.channels, in.vectors(), {tile.grad, 1, kNceColumns}, packed.entries, s.channels, output, s.channels,
           true);
      gemm(in.vectors(), s.channels, rows, {tile.grad, kNceColumns, 1}, x.data, x.stride, grad_entries, s.channels,
           true);
    }
    for (int64_t n = 0; n < rows && !s.in_place; ++n) {
      narrow(in.dtype, output + n * s.channels, call.grad_features, (at + n) * in.channels, in.channels);
    }
  }
}

inline NceKernels nce_kernels() { return {kLanes, nce_scratch, nce_forward_chunk, nce_backward_chunk}; }
