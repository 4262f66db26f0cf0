// InfoNCE over a chunk of pixels; see nce.h for the formulas.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
