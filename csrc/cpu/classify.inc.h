// Classification of a chunk of pixels, forward and backward; see classify.h for the order of the channels.
// Included inside the namespace of one instruction set; see isa_*.cpp.
//
// A tile is a run of pixels in one row of the grid. Its matrices have a row per channel of U, or per class vector, and 16
// columns per pixel, so that the scores are one matrix product and its results go straight to the image.

constexpr int64_t kSub = 16;  // sub-pixels of a pixel
constexpr int64_t kRun = 16;  // most pixels of a tile
// Columns of the matrices, and a cache line more, so that their rows do not all fall into the same cache set.
constexpr int64_t kColumns = kRun * kSub + 16;
constexpr int64_t kUnroll = 4;  // rows and columns of a register block of hyper's gradient

using Quad = VectorOf<4>::Float;

inline int64_t padded(int64_t rows) { return (rows + kUnroll - 1) / kUnroll * kUnroll; }

struct ClassifyTile {
  float* pixels;    // [T, C]          widened, where the dtype is not float32
  float* mean;      // [T, 16]         of the norm, the same for all inner sub-pixels
  float* scale;     // [T, 16]         1 / sigma
  float* features;  // [C/16, columns] U
  float* scores;    // [K P, columns]; in the backward then the gradient of U [C/16, columns]
  // backward
  float* normal;     // [T, C]          before weight and bias of the norm; then its gradient
  float* slope;      // [C/16, columns] of U by the norm's result
  float* grad;       // [K P, columns]  of the scores
  float* hyper;      // [K P, C/16, 16] gradient of hyper, lanes apart
  float* vectors;    // [2, C]          gradients of the norm's weight and bias, sub-pixels apart
};

// Floats of the parts of a tile; those of the backward only are zero in the forward.
struct ClassifySizes {
  ClassifySizes(const ClassifyInputs& in, bool backward)
      : pixels(in.dtype == Dtype::f32 ? 0 : kRun * in.channels),
        moments(kRun * kSub),
        features(padded(in.depth()) * kColumns),
        scores(padded(backward && in.depth() > in.vectors() ? in.depth() : in.vectors()) * kColumns),
        normal(backward ? kRun * in.channels : 0),
        slope(backward ? features : 0),
        grad(backward ? padded(in.vectors()) * kColumns : 0),
        hyper(backward ? padded(in.vectors()) * padded(in.depth()) * kSub : 0),
        vectors(backward ? 2 * in.channels : 0) {}
  int64_t total() const {
    return pixels + 2 * moments + features + scores + normal + slope + grad + hyper + vectors;
  }
  int64_t pixels, moments, features, scores, normal, slope, grad, hyper, vectors;
};

inline int64_t classify_scratch(const ClassifyInputs& in, bool backward) { return ClassifySizes(in, backward).total(); }

inline ClassifyTile carve_classify(const ClassifyInputs& in, float* at, bool backward) {
  const ClassifySizes s(in, backward);
  ClassifyTile tile{};
  tile.pixels = at;
  tile.mean = tile.pixels + s.pixels;
  tile.scale = tile.mean + s.moments;
  tile.features = tile.scale + s.moments;
  tile.scores = tile.features + s.features;
  tile.normal = tile.scores + s.scores;
  tile.slope = tile.normal + s.normal;
  tile.grad = tile.slope + s.slope;
  tile.hyper = tile.grad + s.grad;
  tile.vectors = tile.hyper + s.hyper;
  return tile;
}

// A run of pixels and where its block of the image begins.
struct Run {
  int64_t count;
  int64_t pixel;   // of the first one, over the whole batch
  int64_t corner;  // 4 y * 4 w + 4 x
};

inline Run run_at(const ClassifyInputs& in, Chunk chunk, int64_t first) {
  const int64_t y = first / in.width, x = first % in.width;
  int64_t count = chunk.end - first < kRun ? chunk.end - first : kRun;
  count = in.width - x < count ? in.width - x : count;
  return {count, chunk.batch * in.height * in.width + first, 16 * y * in.width + 4 * x};
}

// Sums of 16 lanes over the inner sub-pixels, given back to all of them.
inline void sum_inner(float* lanes, float factor) {
  const Quad sum = (load<4>(lanes) + load<4>(lanes + 4)) + (load<4>(lanes + 8) + load<4>(lanes + 12));
  for (int i = 0; i < 4; ++i) {
    store(lanes + 4 * i, sum * splat<Quad>(factor));
  }
}

// lanes [16] = sum over the channels c of term(channel 16 c + lane).
template <class Term>
inline void sum_channels(int64_t channels, float* lanes, Term term) {
  for (int64_t v = 0; v < kSub; v += kLanes) {
    Vec even{}, odd{};
    int64_t c = v;
    for (; c + kSub < channels; c += 2 * kSub) {
      even += term(c, v);
      odd += term(c + kSub, v);
    }
    store(lanes + v, c < channels ? even + odd + term(c, v) : even + odd);
  }
}

// The 16 values of a pixel to its 4 x 4 block of the image, and back. Lane = inner row, inner column, outer row, outer
// column; the row of the image is 2 * outer + inner, its column likewise.
inline void to_block(const float* lanes, float* image, int64_t stride) {
  for (int64_t inner = 0; inner < 2; ++inner) {
    const Quad left = load<4>(lanes + 8 * inner), right = load<4>(lanes + 8 * inner + 4);
    store(image + inner * stride, Quad{left[0], right[0], left[1], right[1]});
    store(image + (2 + inner) * stride, Quad{left[2], right[2], left[3], right[3]});
  }
}

inline void from_block(const float* image, int64_t stride, float* lanes) {
  for (int64_t inner = 0; inner < 2; ++inner) {
    const Quad top = load<4>(image + inner * stride), bottom = load<4>(image + (2 + inner) * stride);
    store(lanes + 8 * inner, Quad{top[0], top[2], bottom[0], bottom[2]});
    store(lanes + 8 * inner + 4, Quad{top[1], top[3], bottom[1], bottom[3]});
  }
}

// tile.features = U; in the backward also tile.normal and tile.slope.
template <bool kBackward>
inline void features_tile(const ClassifyInputs& in, const ClassifyNorm& norm, Run run, const ClassifyTile& tile) {
  const int64_t channels = in.channels;
  const float* pixels = tile.pixels;
  if (in.dtype == Dtype::f32) {
    pixels = static_cast<const float*>(in.pixels) + run.pixel * channels;
  } else {
    widen(in.dtype, in.pixels, run.pixel * channels, tile.pixels, run.count * channels);
  }
  const float share = 4.0f / static_cast<float>(channels);
  for (int64_t n = 0; n < run.count; ++n) {
    const float* x = pixels + n * channels;
    float* mean = tile.mean + n * kSub;
    float* scale = tile.scale + n * kSub;
    sum_channels(channels, mean, [&](int64_t c, int64_t) { return load(x + c); });
    sum_inner(mean, share);
    sum_channels(channels, scale, [&](int64_t c, int64_t v) {
      const Vec d = load(x + c) - load(mean + v);
      return d * d;
    });
    sum_inner(scale, share);
    Quad inverse_sigma;
    for (int i = 0; i < 4; ++i) {
      inverse_sigma[i] = 1.0f / __builtin_sqrtf(scale[i] + in.eps);
    }
    for (int i = 0; i < 4; ++i) {
      store(scale + 4 * i, inverse_sigma);
    }
  }
  for (int64_t n = 0; n < run.count; ++n) {
    for (int64_t v = 0; v < kSub; v += kLanes) {
      const Vec mean = load(tile.mean + n * kSub + v), scale = load(tile.scale + n * kSub + v);
      for (int64_t c = 0; c < channels; c += kSub) {
        const Vec normal = (load(pixels + n * channels + c + v) - mean) * scale;
        const Vec outer = normal * load(norm.weight + c + v) + load(norm.bias + c + v);
        const int64_t at = c / kSub * kColumns + n * kSub + v;
        if (kBackward) {
          store(tile.normal + n * channels + c + v, normal);
          Vec first, second;
          const Vec inner = gelu_and_slope(outer, &first);
          store(tile.features + at, gelu_and_slope(inner, &second));
          store(tile.slope + at, first * second);
        } else {
          store(tile.features + at, gelu(gelu(outer)));
        }
      }
    }
  }
}

inline void scores_tile(const ClassifyInputs& in, int64_t batch, Run run, const ClassifyTile& tile) {
  const int64_t depth = in.depth(), rows = in.vectors();
  gemm(rows, run.count * kSub, depth, {in.hyper + batch * rows * depth, depth, 1}, tile.features, kColumns, tile.scores,
       kColumns, false);
}

// The scores of a class's prototypes become one, in the rows [K] of the same matrix.
inline void reduce_tile(const ClassifyInputs& in, Run run, float* scores) {
  const int64_t p = in.prototypes;
  for (int64_t k = 0; k < in.classes && p > 1; ++k) {
    for (int64_t at = 0; at < run.count * kSub; at += kLanes) {
      const float* from = scores + k * p * kColumns + at;
      Vec top = load(from), sum = load(from);
      for (int64_t i = 1; i < p; ++i) {
        top = maximum(load(from + i * kColumns), top);
        sum += load(from + i * kColumns);
      }
      Vec result = top;
      if (in.reduction == Reduction::mean) {
        result = sum / splat(static_cast<float>(p));
      } else if (in.reduction == Reduction::logsumexp) {
        sum = Vec{};
        for (int64_t i = 0; i < p; ++i) {
          sum += exponential(load(from + i * kColumns) - top);
        }
        result = top + logarithm(sum);
      }
      store(scores + k * kColumns + at, result);
    }
  }
}

// Labels and confidence of a tile from the scores [K]; they take the place of the first two rows of tile.features.
inline void label_tile(const ClassifyForward& call, int64_t batch, Run run, const ClassifyTile& tile) {
  const ClassifyInputs& in = call.in;
  float* label = tile.features;
  float* confidence = tile.features + kColumns;
  for (int64_t at = 0; at < run.count * kSub; at += kLanes) {
    const float* scores = tile.scores + at;
    Vec best = load(scores), index{};
    for (int64_t k = 1; k < in.classes; ++k) {
      const Vec score = load(scores + k * kColumns);
      index = score > best ? splat(static_cast<float>(k)) : index;
      best = maximum(score, best);
    }
    store(label + at, index);
    if (call.confidence != nullptr) {
      Vec sum{};
      for (int64_t k = 0; k < in.classes; ++k) {
        sum += exponential(load(scores + k * kColumns) - best);
      }
      store(confidence + at, splat(1.0f) / sum);
    }
  }
  const int64_t stride = 4 * in.width, corner = batch * 16 * in.height * in.width + run.corner;
  constexpr int64_t kRow = 4 * kRun;
  float rows[4 * kRow];
  for (int64_t n = 0; n < run.count; ++n) {
    to_block(label + n * kSub, rows + 4 * n, kRow);
    if (call.confidence != nullptr) {
      to_block(confidence + n * kSub, call.confidence + corner + 4 * n, stride);
    }
  }
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t i = 0; i < 4 * run.count; ++i) {
      if (call.wide_labels) {
        static_cast<int16_t*>(call.labels)[corner + r * stride + i] = static_cast<int16_t>(rows[r * kRow + i]);
      } else {
        static_cast<uint8_t*>(call.labels)[corner + r * stride + i] = static_cast<uint8_t>(rows[r * kRow + i]);
      }
    }
  }
}

inline void classify_forward_chunk(const ClassifyForward& call, const ClassifyNorm& norm, Chunk chunk, float* scratch) {
  const ClassifyInputs& in = call.in;
  const ClassifyTile tile = carve_classify(in, scratch, false);
  const int64_t stride = 4 * in.width, image = 16 * in.height * in.width;
  for (int64_t first = chunk.begin; first < chunk.end;) {
    const Run run = run_at(in, chunk, first);
    features_tile<false>(in, norm, run, tile);
    scores_tile(in, chunk.batch, run, tile);
    reduce_tile(in, run, tile.scores);
    if (call.labels != nullptr) {
      label_tile(call, chunk.batch, run, tile);
    } else {
      for (int64_t k = 0; k < in.classes; ++k) {
        float* to = call.logits + (chunk.batch * in.classes + k) * image + run.corner;
        for (int64_t n = 0; n < run.count; ++n) {
          to_block(tile.scores + k * kColumns + n * kSub, to + 4 * n, stride);
        }
      }
    }
    first += run.count;
  }
}

// tile.grad: from the gradients of the logits in the rows [K] to those of the scores [K P], the last row first.
inline void spread_tile(const ClassifyInputs& in, Run run, const ClassifyTile& tile) {
  const int64_t p = in.prototypes;
  for (int64_t k = in.classes - 1; k >= 0; --k) {
    for (int64_t at = 0; at < run.count * kSub; at += kLanes) {
      const Vec grad = load(tile.grad + k * kColumns + at);
      const float* scores = tile.scores + k * p * kColumns + at;
      float* to = tile.grad + k * p * kColumns + at;
      if (in.reduction == Reduction::mean) {
        for (int64_t i = 0; i < p; ++i) {
          store(to + i * kColumns, grad / splat(static_cast<float>(p)));
        }
        continue;
      }
      Vec top = load(scores), sum{};
      for (int64_t i = 1; i < p; ++i) {
        top = maximum(load(scores + i * kColumns), top);
      }
      // The maximum shares its gradient among equals, as PyTorch does.
      const auto weight = [&](int64_t i) {
        const Vec score = load(scores + i * kColumns);
        return in.reduction == Reduction::max ? (score == top ? splat(1.0f) : Vec{}) : exponential(score - top);
      };
      for (int64_t i = 0; i < p; ++i) {
        sum += weight(i);
      }
      for (int64_t i = 0; i < p; ++i) {
        store(to + i * kColumns, grad * weight(i) / sum);
      }
    }
  }
}

// tile.hyper += grad U^T, lane by lane: no transpose, and the lanes are added up once a chunk.
inline void hyper_tile(const ClassifyInputs& in, Run run, const ClassifyTile& tile) {
  const int64_t depth = padded(in.depth()), rows = padded(in.vectors());
  for (int64_t k = 0; k < rows; k += kUnroll) {
    for (int64_t c = 0; c < depth; c += kUnroll) {
      for (int64_t v = 0; v < kSub; v += kLanes) {
        float* to = tile.hyper + (k * depth + c) * kSub + v;
        Vec sum[kUnroll][kUnroll];
#pragma GCC unroll 8
        for (int i = 0; i < kUnroll; ++i) {
#pragma GCC unroll 8
          for (int j = 0; j < kUnroll; ++j) sum[i][j] = load(to + (i * depth + j) * kSub);
        }
        for (int64_t at = v; at < run.count * kSub; at += kSub) {
          Vec feature[kUnroll];
#pragma GCC unroll 8
          for (int j = 0; j < kUnroll; ++j) feature[j] = load(tile.features + (c + j) * kColumns + at);
#pragma GCC unroll 8
          for (int i = 0; i < kUnroll; ++i) {
            const Vec grad = load(tile.grad + (k + i) * kColumns + at);
#pragma GCC unroll 8
            for (int j = 0; j < kUnroll; ++j) sum[i][j] += grad * feature[j];
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kUnroll; ++i) {
#pragma GCC unroll 8
          for (int j = 0; j < kUnroll; ++j) store(to + (i * depth + j) * kSub, sum[i][j]);
        }
      }
    }
  }
}

// From the gradient of U, in the rows [C/16] of tile.scores, to that of the pixels.
inline void pixels_tile(const ClassifyBackward& call, const ClassifyNorm& norm, Run run, const ClassifyTile& tile) {
  const ClassifyInputs& in = call.in;
  const int64_t channels = in.channels;
  const float share = 4.0f / static_cast<float>(channels);
  for (int64_t n = 0; n < run.count; ++n) {
    float* normal = tile.normal + n * channels;
    float* grad_weight = tile.vectors;
    float* grad_bias = tile.vectors + channels;
    float* grad_of_u = tile.scores + n * kSub;
    float mean[kSub], tilt[kSub];
    for (int64_t v = 0; v < kSub; v += kLanes) {
      Vec sum{}, dot{};
      for (int64_t c = v; c < channels; c += kSub) {
        const int64_t at = c / kSub * kColumns + v;
        const Vec grad = load(grad_of_u + at) * load(tile.slope + n * kSub + at), hat = load(normal + c);
        store(grad_bias + c, load(grad_bias + c) + grad);
        store(grad_weight + c, load(grad_weight + c) + grad * hat);
        const Vec scaled = grad * load(norm.weight + c);
        store(grad_of_u + at, scaled);
        sum += scaled;
        dot += scaled * hat;
      }
      store(mean + v, sum);
      store(tilt + v, dot);
    }
    sum_inner(mean, share);
    sum_inner(tilt, share);
    for (int64_t v = 0; v < kSub; v += kLanes) {
      for (int64_t c = v; c < channels; c += kSub) {
        const Vec grad = load(grad_of_u + c / kSub * kColumns + v) - load(mean + v) - load(normal + c) * load(tilt + v);
        store(normal + c, grad * load(tile.scale + n * kSub + v));
      }
    }
  }
  narrow(in.dtype, tile.normal, call.grad_pixels, run.pixel * channels, run.count * channels);
}

inline void classify_backward_chunk(const ClassifyBackward& call, const ClassifyNorm& norm, Chunk chunk,
                                    const ClassifyPartial& partial, float* scratch) {
  const ClassifyInputs& in = call.in;
  const int64_t depth = in.depth(), rows = in.vectors(), channels = in.channels;
  const ClassifyTile tile = carve_classify(in, scratch, true);
  // Rows beyond the depth and the class vectors stay zero; so do the sums before the first tile.
  __builtin_memset(scratch, 0, classify_scratch(in, true) * 4);
  const int64_t stride = 4 * in.width, image = 16 * in.height * in.width;
  for (int64_t first = chunk.begin; first < chunk.end;) {
    const Run run = run_at(in, chunk, first);
    features_tile<true>(in, norm, run, tile);
    for (int64_t k = 0; k < in.classes; ++k) {
      const float* from = call.grad_logits + (chunk.batch * in.classes + k) * image + run.corner;
      for (int64_t n = 0; n < run.count; ++n) {
        from_block(from + 4 * n, stride, tile.grad + k * kColumns + n * kSub);
      }
    }
    if (in.prototypes > 1) {
      scores_tile(in, chunk.batch, run, tile);
      spread_tile(in, run, tile);
    }
    hyper_tile(in, run, tile);
    gemm(depth, run.count * kSub, rows, {in.hyper + chunk.batch * rows * depth, 1, depth}, tile.grad, kColumns,
         tile.scores, kColumns, false);
    pixels_tile(call, norm, run, tile);
    first += run.count;
  }
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t c = 0; c < depth; ++c) {
      float* lanes = tile.hyper + (k * padded(depth) + c) * kSub;
      sum_inner(lanes, 1.0f);
      partial.hyper[k * depth + c] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    }
  }
  for (int64_t c = 0; c < channels / 4; ++c) {
    const float* weight = tile.vectors + 4 * c;
    const float* bias = tile.vectors + channels + 4 * c;
    partial.norm_weight[c] = (weight[0] + weight[1]) + (weight[2] + weight[3]);
    partial.norm_bias[c] = (bias[0] + bias[1]) + (bias[2] + bias[3]);
  }
}

inline ClassifyKernels classify_kernels() { return {classify_scratch, classify_forward_chunk, classify_backward_chunk}; }
