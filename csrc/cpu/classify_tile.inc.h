// A tile of pixels from the pixels to their scores; see classify.h for the order of the channels.
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

// The scores of a class's prototypes, P > 1, become one: logits [K], in a matrix of their own or in the first rows of scores.
inline void reduce_tile(const ClassifyInputs& in, Run run, const float* scores, float* logits) {
  const int64_t p = in.prototypes;
  for (int64_t k = 0; k < in.classes; ++k) {
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
      store(logits + k * kColumns + at, result);
    }
  }
}
