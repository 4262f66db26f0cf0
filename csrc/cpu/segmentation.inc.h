// Sums of the segmentation loss over a chunk of pixels, and their gradients; see segmentation.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

constexpr float kUnlabelled = -1.0f;

// What a tile needs besides classification: its labels, and in the forward the sums, lanes apart, of the tile and (in
// double) of the chunk.
struct SegmentationTile {
  ClassifyTile scores;
  float* labels;  // [T, 16]
  float* sums;    // [1 + 3 K, 16]
  double* total;  // [1 + 3 K, 16]
};

inline int64_t segmentation_sums(const ClassifyInputs& in) { return (1 + 3 * in.classes) * kSub; }

inline int64_t segmentation_scratch(const ClassifyInputs& in, bool backward) {
  return classify_scratch(in, backward) + kRun * kSub + (backward ? 0 : 3 * segmentation_sums(in));
}

inline SegmentationTile carve_segmentation(const ClassifyInputs& in, float* at, bool backward) {
  SegmentationTile tile{carve_classify(in, at, backward), at + classify_scratch(in, backward), nullptr, nullptr};
  if (!backward) {
    tile.sums = tile.labels + kRun * kSub;
    tile.total = reinterpret_cast<double*>(tile.sums + segmentation_sums(in));
  }
  return tile;
}

// tile.labels in the order of the lanes, kUnlabelled where ignored, wrong or beyond the target. Whether any is a class.
inline bool labels_tile(const SegmentationInputs& call, int64_t batch, int64_t first, Run run,
                        const SegmentationTile& tile, WrongLabel* wrong) {
  constexpr int64_t kRow = 4 * kRun;
  float rows[4 * kRow];
  const int64_t top = first / call.in.width * 4, left = first % call.in.width * 4;
  const int64_t columns = call.width - left < 4 * run.count ? call.width - left : 4 * run.count;
  int64_t labelled = 0;
  for (int64_t r = 0; r < 4; ++r) {
    const int64_t inside = top + r < call.height && columns > 0 ? columns : 0;
    const int64_t* from = call.target + (batch * call.height + top + r) * call.width + left;
    float* row = rows + r * kRow;
    int64_t strangers = 0;
    for (int64_t i = 0; i < inside; ++i) {
      const bool counts = from[i] != call.ignore_index;
      const bool is_class = static_cast<uint64_t>(from[i]) < static_cast<uint64_t>(call.in.classes);
      labelled += counts & is_class;
      strangers += counts & !is_class;
      row[i] = counts & is_class ? static_cast<float>(from[i]) : kUnlabelled;
    }
    for (int64_t i = inside; i < 4 * run.count; ++i) {
      row[i] = kUnlabelled;
    }
    for (int64_t i = 0; strangers > 0 && !wrong->found; ++i) {
      *wrong = {row[i] == kUnlabelled && from[i] != call.ignore_index, from[i]};
    }
  }
  for (int64_t n = 0; n < run.count && labelled > 0; ++n) {
    from_block(rows + 4 * n, kRow, tile.labels + n * kSub);
  }
  return labelled > 0;
}

// tile.sums from the logits, which become exponentials.
inline void sums_tile(const ClassifyInputs& in, const SegmentationTerms& terms, Run run, const SegmentationTile& tile) {
  const int64_t classes = in.classes;
  __builtin_memset(tile.sums, 0, segmentation_sums(in) * 4);
  for (int64_t at = 0; at < run.count * kSub; at += kLanes) {
    float* logits = tile.scores.scores + at;
    float* sums = tile.sums + at % kSub;
    const Vec label = load(tile.labels + at);
    Vec top = load(logits);
    for (int64_t k = 1; k < classes; ++k) {
      top = maximum(load(logits + k * kColumns), top);
    }
    // Distances from the largest logit, so that nothing cancels: -log p = log sum - (s - top), both parts positive.
    Vec sum{}, of_label{}, of_all{}, weight{};
    for (int64_t k = 0; k < classes; ++k) {
      const Vec shift = load(logits + k * kColumns) - top, exponent = exponential(shift), w = splat(terms.weights[k]);
      const auto here = label == splat(static_cast<float>(k));
      store(logits + k * kColumns, exponent);
      sum += exponent;
      of_all += w * shift;
      of_label = here ? shift : of_label;
      weight = here ? w : weight;
    }
    const Vec log_sum = logarithm(sum);
    const Vec entropy = splat(terms.on) * weight * (log_sum - of_label) +
                        splat(terms.off) * (splat(terms.weight_sum) * log_sum - of_all);
    const auto labelled = label >= Vec{};
    store(sums, load(sums) + (labelled ? entropy : Vec{}));
    const Vec inverse = splat(1.0f) / sum;
    for (int64_t k = 0; k < classes; ++k) {
      const Vec p = labelled ? load(logits + k * kColumns) * inverse : Vec{};
      const auto here = label == splat(static_cast<float>(k));
      float* overlap = sums + (1 + k) * kSub;
      float* volume = overlap + classes * kSub;
      float* count = volume + classes * kSub;
      store(overlap, load(overlap) + (here ? p : Vec{}));
      store(volume, load(volume) + p);
      store(count, load(count) + (here ? splat(1.0f) : Vec{}));
    }
  }
}

// The gradients of the logits, in the place of the logits or elsewhere.
inline void slopes_tile(const ClassifyInputs& in, const SegmentationTerms& terms, Run run, const SegmentationTile& tile,
                        const float* logits, float* grad) {
  const int64_t classes = in.classes;
  for (int64_t at = 0; at < run.count * kSub; at += kLanes) {
    const Vec label = load(tile.labels + at);
    Vec top = load(logits + at);
    for (int64_t k = 1; k < classes; ++k) {
      top = maximum(load(logits + k * kColumns + at), top);
    }
    Vec sum{}, dot{}, weight{};
    for (int64_t k = 0; k < classes; ++k) {
      const Vec exponent = exponential(load(logits + k * kColumns + at) - top);
      const auto here = label == splat(static_cast<float>(k));
      store(grad + k * kColumns + at, exponent);
      sum += exponent;
      dot += exponent * (splat(terms.volume[k]) + (here ? splat(terms.overlap[k]) : Vec{}));
      weight = here ? splat(terms.weights[k]) : weight;
    }
    const Vec inverse = splat(1.0f) / sum, mean = dot * inverse, own = splat(terms.on) * weight;
    const auto labelled = label >= Vec{};
    for (int64_t k = 0; k < classes; ++k) {
      float* to = grad + k * kColumns + at;
      const auto here = label == splat(static_cast<float>(k));
      const Vec p = load(to) * inverse, by_p = splat(terms.volume[k]) + (here ? splat(terms.overlap[k]) : Vec{});
      // Differences first: they vanish where the prediction is right.
      const Vec slope = own * (here ? p - splat(1.0f) : p) +
                        splat(terms.off) * (p * splat(terms.weight_sum) - splat(terms.weights[k])) + p * (by_p - mean);
      store(to, labelled ? slope : Vec{});
    }
  }
}

inline void segmentation_forward_chunk(const SegmentationInputs& call, const SegmentationTerms& terms,
                                       const ClassifyNorm& norm, Chunk chunk, const SegmentationPartial& partial,
                                       float* scratch) {
  const ClassifyInputs& in = call.in;
  const SegmentationTile tile = carve_segmentation(in, scratch, false);
  const int64_t count = segmentation_sums(in);
  for (int64_t i = 0; i < count; ++i) {
    tile.total[i] = 0.0;
  }
  for (int64_t first = chunk.begin; first < chunk.end;) {
    const Run run = run_at(in, chunk, first);
    if (labels_tile(call, chunk.batch, first, run, tile, partial.wrong)) {
      features_tile<false>(in, norm, run, tile.scores);
      scores_tile(in, chunk.batch, run, tile.scores);
      if (in.prototypes > 1) {
        reduce_tile(in, run, tile.scores.scores, tile.scores.scores);
      }
      sums_tile(in, terms, run, tile);
      for (int64_t i = 0; i < count; ++i) {
        tile.total[i] += tile.sums[i];
      }
    }
    first += run.count;
  }
  for (int64_t i = 0; i < count; i += kSub) {
    double sum = 0.0;
    for (int64_t lane = 0; lane < kSub; ++lane) {
      sum += tile.total[i + lane];
    }
    partial.sums[i / kSub] = sum;
  }
}

inline void segmentation_backward_chunk(const SegmentationInputs& call, const SegmentationTerms& terms,
                                        const ClassifyNorm& norm, Chunk chunk, const ClassifyPartial& partial,
                                        void* grad_pixels, float* scratch) {
  const ClassifyInputs& in = call.in;
  const SegmentationTile tile = carve_segmentation(in, scratch, true);
  const ClassifyTile& scores = tile.scores;
  // Rows beyond the depth and the class vectors stay zero; so do the sums before the first tile.
  __builtin_memset(scratch, 0, segmentation_scratch(in, true) * 4);
  WrongLabel wrong{};  // the forward has reported it
  for (int64_t first = chunk.begin; first < chunk.end;) {
    const Run run = run_at(in, chunk, first);
    if (labels_tile(call, chunk.batch, first, run, tile, &wrong)) {
      features_tile<true>(in, norm, run, scores);
      scores_tile(in, chunk.batch, run, scores);
      if (in.prototypes > 1) {
        reduce_tile(in, run, scores.scores, scores.grad);
        slopes_tile(in, terms, run, tile, scores.grad, scores.grad);
        spread_tile(in, run, scores);
      } else {
        slopes_tile(in, terms, run, tile, scores.scores, scores.grad);
      }
      gradients_tile(in, norm, chunk.batch, run, scores, grad_pixels);
    } else {
      const int64_t size = in.dtype == Dtype::f32 ? 4 : 2, bytes = in.channels * size;
      __builtin_memset(static_cast<char*>(grad_pixels) + run.pixel * bytes, 0, run.count * bytes);
    }
    first += run.count;
  }
  collect_chunk(in, scores, partial);
}

inline SegmentationKernels segmentation_kernels() {
  return {segmentation_scratch, segmentation_forward_chunk, segmentation_backward_chunk};
}
