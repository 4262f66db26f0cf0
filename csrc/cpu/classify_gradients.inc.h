// A tile of pixels back from the gradients of its scores to those of pixels, norm and class vectors.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
inline void pixels_tile(const ClassifyInputs& in, const ClassifyNorm& norm, Run run, const ClassifyTile& tile,
                        void* grad_pixels) {
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
  narrow(in.dtype, tile.normal, grad_pixels, run.pixel * channels, run.count * channels);
}

// From tile.grad, the gradients of the scores, to those of the pixels and on top of the chunk's sums for the others.
inline void gradients_tile(const ClassifyInputs& in, const ClassifyNorm& norm, int64_t batch, Run run,
                           const ClassifyTile& tile, void* grad_pixels) {
  const int64_t depth = in.depth(), rows = in.vectors();
  hyper_tile(in, run, tile);
  gemm(depth, run.count * kSub, rows, {in.hyper + batch * rows * depth, 1, depth}, tile.grad, kColumns, tile.scores,
       kColumns, false);
  pixels_tile(in, norm, run, tile, grad_pixels);
}

// The lanes and sub-pixels of a chunk's sums become one.
inline void collect_chunk(const ClassifyInputs& in, const ClassifyTile& tile, const ClassifyPartial& partial) {
  const int64_t depth = in.depth(), rows = in.vectors(), channels = in.channels;
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
