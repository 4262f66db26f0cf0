// Classification of a chunk of pixels to logits or labels, and back from the logits' gradients.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
    if (in.prototypes > 1) {
      reduce_tile(in, run, tile.scores, tile.scores);
    }
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

inline void classify_backward_chunk(const ClassifyBackward& call, const ClassifyNorm& norm, Chunk chunk,
                                    const ClassifyPartial& partial, float* scratch) {
  const ClassifyInputs& in = call.in;
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
    gradients_tile(in, norm, chunk.batch, run, tile, call.grad_pixels);
    first += run.count;
  }
  collect_chunk(in, tile, partial);
}

inline ClassifyKernels classify_kernels() { return {classify_scratch, classify_forward_chunk, classify_backward_chunk}; }
