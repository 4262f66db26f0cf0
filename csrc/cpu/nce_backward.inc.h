// Gradients of the InfoNCE over a chunk of pixels; see nce.h for the formulas.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
