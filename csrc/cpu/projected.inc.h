// The projected interaction over one chunk of pixels; see projected.h. Included inside the namespace of one instruction
// set; see isa_*.cpp.
//
// "_t" matrices have the T pixels of a tile as their columns: then scores, softmax over the entries and mixing run over
// whole vectors of pixels for any number of entries and any depth of a head.

// out [D, kTile] = rows [T, stride], zero in the columns beyond T.
inline void transpose_tile(const ProjectedSizes& p, int64_t rows, const float* matrix, float* out) {
  for (int64_t first = 0; first < p.width; first += kLanes) {
    const int64_t last = first + kLanes < p.width ? first + kLanes : p.width;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t i = first; i < last; ++i) {
        out[i * kTile + n] = matrix[n * p.stride + i];
      }
    }
    for (int64_t i = first; i < last && rows < kTile; ++i) {
      clear(out + i * kTile + rows, kTile - rows);
    }
  }
}

// The vector beyond the projections of every row of a tile: read with the last head, never used.
inline void clear_slack(const ProjectedSizes& p, float* rows) {
  for (int64_t n = 0; n < kTile; ++n) {
    clear(rows + n * p.stride + p.widths, p.stride - p.widths);
  }
}

inline int64_t pixel_columns(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }

inline void copy_through(const PassShape& s, const ProjectedSizes& p, int64_t first, int64_t rows, const float* through,
                         float* image) {
  for (int64_t n = 0; n < rows && image != nullptr; ++n) {
    __builtin_memcpy(image + (first + n) * s.channels, through + n * p.pass.channels, s.channels * 4);
  }
}

// Adds grad_t [D, T] times weight [D, Cp] to output [T, Cp]; by itself also to `through`, unless null.
inline void project_backward(const ProjectedSizes& p, int64_t rows, const float* grad_t, const float* weight,
                             float* output, float* through) {
  const int64_t channels = p.pass.channels;
  const Strided grad{grad_t, 1, kTile};
  if (through == nullptr) {
    gemm(rows, channels, p.width, grad, weight, channels, output, channels, true);
    return;
  }
  gemm(rows, channels, p.width, grad, weight, channels, through, channels, false);
  for (int64_t i = 0; i < rows * channels; i += kLanes) {
    store(output + i, load(output + i) + load(through + i));
  }
}

// --- attend -----------------------------------------------------------------------------------------------------------

struct AttendProjectedTile {
  AttendProjectedTile(const ProjectedSizes& p, Arena* arena) {
    const int64_t pixels = kTile * p.pass.channels, narrow = kTile * p.stride;
    x = arena->take(pixels);
    y = arena->take(pixels);
    key = arena->take(narrow);
    value = arena->take(narrow);
    score = arena->take(kTile * (p.backward ? p.entries : p.columns));
    if (p.backward) {
      output = arena->take(pixels);
      through = arena->take(pixels);
      for (float** part : {&key_t, &value_t, &key_grad_t, &value_grad_t}) *part = arena->take(kTile * p.width);
      score_grad = arena->take(kTile * p.entries);
    }
  }
  float *x, *y;        // [T, Cp] pixels, where they cannot be read in place; pixels + pe
  float *key, *value;  // [T, Dp]
  float* score;        // forward [T, Kp], backward [K, T]
  // backward
  float *output, *through;                            // [T, Cp]
  float *key_t, *value_t, *key_grad_t, *value_grad_t; // [D, T]
  float* score_grad;                                  // [K, T]
};

inline int64_t attend_projected_scratch(const ProjectedSizes& p) {
  Arena count{nullptr, 0};
  AttendProjectedTile(p, &count);
  return count.used;
}

// Loads a tile and projects it. Returns its pixels.
inline Rows project_attend(const AttendProjectedInputs& in, const ProjectedSizes& p, const AttendProjectedPacked& packed,
                           Chunk chunk, int64_t first, int64_t rows, const AttendProjectedTile& tile) {
  const PassShape& s = in.pass.shape;
  const int64_t at = (chunk.batch * s.pixels + first) * s.channels;
  const Rows x = load_rows(s, p.pass, in.pass.pixels, at, rows, tile.x);
  add_pe(in.pass, p.pass, s.shared_pe ? first * s.channels : at, rows, x, tile.y);
  gemm(rows, p.widths, s.channels, {tile.y, p.pass.channels, 1}, packed.key_weight_t, p.widths, tile.key, p.stride, false);
  gemm(rows, p.widths, s.channels, {x.data, x.stride, 1}, packed.value_weight_t, p.widths, tile.value, p.stride, false);
  return x;
}

// Weights of a tile's pixels in place on scores [T, Kp], relative to the largest score so far; what was summed before
// is brought to the new scale.
inline void softmax_pixels(const ProjectedSizes& p, int64_t rows, float* score, float* row_max, float* row_sum,
                           float* mixed_t) {
  for (int64_t k = 0; k < p.columns; k += kLanes) {
    const Vec before = load(row_max + k);
    Vec top = before;
    for (int64_t n = 0; n < rows; ++n) {
      top = maximum(load(score + n * p.columns + k), top);
    }
    const Vec scale = exponential(before - top);
    Vec sum = load(row_sum + k) * scale;
    for (int64_t n = 0; n < rows; ++n) {
      const Vec weight = exponential(load(score + n * p.columns + k) - top);
      store(score + n * p.columns + k, weight);
      sum += weight;
    }
    store(row_max + k, top);
    store(row_sum + k, sum);
    for (int64_t i = 0; i < p.depth; ++i) {
      store(mixed_t + i * p.columns + k, load(mixed_t + i * p.columns + k) * scale);
    }
  }
}

inline void attend_projected_chunk(const AttendProjectedForward& call, const ProjectedSizes& p,
                                   const AttendProjectedPacked& packed, Chunk chunk,
                                   const AttendProjectedPartial& partial, float* scratch) {
  Arena arena{scratch, 0};
  const AttendProjectedTile tile(p, &arena);
  clear(partial.mixed_t, p.width * p.columns);
  for (int64_t i = 0; i < p.heads * p.columns; i += kLanes) {
    store(partial.row_max + i, splat(-__builtin_inff()));
    store(partial.row_sum + i, Vec{});
  }
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile;
    project_attend(call.in, p, packed, chunk, first, rows, tile);
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t head = h * p.depth;
      float* mixed_t = partial.mixed_t + head * p.columns;
      gemm(rows, p.columns, p.depth, {tile.key + head, p.stride, 1}, packed.query_t + head * p.columns, p.columns,
           tile.score, p.columns, false);
      softmax_pixels(p, rows, tile.score, partial.row_max + h * p.columns, partial.row_sum + h * p.columns, mixed_t);
      gemm(p.depth, p.columns, rows, {tile.value + head, 1, p.stride}, tile.score, p.columns, mixed_t, p.columns, true);
    }
  }
}

inline void attend_projected_backward_chunk(const AttendProjectedBackward& call, const ProjectedSizes& p,
                                            const AttendProjectedPacked& packed, Chunk chunk,
                                            const AttendProjectedPartial& partial, float* through_pe, float* scratch) {
  const PassShape& s = call.in.pass.shape;
  const int64_t channels = p.pass.channels;
  Arena arena{scratch, 0};
  const AttendProjectedTile tile(p, &arena);
  clear_slack(p, tile.key);
  clear(partial.query, p.heads * p.entries * p.depths);
  clear(partial.key_weight, p.width * channels);
  clear(partial.value_weight, p.width * channels);
  const float* query = call.in.query + chunk.batch * p.entries * p.width;
  const float* grad_mixed = call.grad_mixed + chunk.batch * p.entries * p.width;
  const float* lse = call.log_sum_exp + chunk.batch * p.heads * p.entries;
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile, columns = pixel_columns(rows);
    const int64_t at = (chunk.batch * s.pixels + first) * s.channels;
    const Rows x = project_attend(call.in, p, packed, chunk, first, rows, tile);
    transpose_tile(p, rows, tile.key, tile.key_t);
    transpose_tile(p, rows, tile.value, tile.value_t);
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t head = h * p.depth, head_t = head * kTile;
      gemm(p.entries, columns, p.depth, {query + head, p.width, 1}, tile.key_t + head_t, kTile, tile.score, kTile, false);
      gemm(p.entries, columns, p.depth, {grad_mixed + head, p.width, 1}, tile.value_t + head_t, kTile, tile.score_grad,
           kTile, false);
      for (int64_t k = 0; k < p.entries; ++k) {
        const Vec norm = splat(lse[h * p.entries + k]), offset = splat(packed.offset[h * p.entries + k]);
        for (int64_t n = 0; n < columns; n += kLanes) {
          const Vec weight = exponential(load(tile.score + k * kTile + n) - norm);
          store(tile.score + k * kTile + n, weight);
          store(tile.score_grad + k * kTile + n, weight * (load(tile.score_grad + k * kTile + n) - offset));
        }
      }
      gemm(p.depth, columns, p.entries, {grad_mixed + head, 1, p.width}, tile.score, kTile, tile.value_grad_t + head_t,
           kTile, false);
      gemm(p.depth, columns, p.entries, {query + head, 1, p.width}, tile.score_grad, kTile, tile.key_grad_t + head_t,
           kTile, false);
      gemm(p.entries, p.depths, rows, {tile.score_grad, kTile, 1}, tile.key + head, p.stride,
           partial.query + h * p.entries * p.depths, p.depths, true);
    }
    gemm(p.width, channels, rows, {tile.key_grad_t, kTile, 1}, tile.y, channels, partial.key_weight, channels, true);
    gemm(p.width, channels, rows, {tile.value_grad_t, kTile, 1}, x.data, x.stride, partial.value_weight, channels, true);
    float* output = in_place(s, p.pass) ? static_cast<float*>(call.grad_pixels) + at : tile.output;
    gemm(rows, channels, p.width, {tile.value_grad_t, 1, kTile}, packed.value_weight, channels, output, channels, false);
    float* through = through_pe != nullptr ? tile.through : nullptr;
    project_backward(p, rows, tile.key_grad_t, packed.key_weight, output, through);
    copy_through(s, p, first, rows, through, through_pe);
    for (int64_t n = 0; n < rows && output == tile.output; ++n) {
      narrow(s.dtype, output + n * channels, call.grad_pixels, at + n * s.channels, s.channels);
    }
  }
}

// --- refine -----------------------------------------------------------------------------------------------------------

struct RefineProjectedTile {
  RefineProjectedTile(const ProjectedSizes& p, Arena* arena) {
    const int64_t pixels = kTile * p.pass.channels;
    x = arena->take(pixels);
    y = arena->take(pixels);
    normal = arena->take(pixels);
    query = arena->take(kTile * p.stride);
    query_t = arena->take(kTile * p.width);
    mixed_t = arena->take(kTile * p.width);
    weight = arena->take(kTile * p.entries * (p.backward ? p.heads : 1));
    if (p.backward) {
      grad = arena->take(pixels);
      output = arena->take(pixels);
      through = arena->take(pixels);
      mixed_grad = arena->take(kTile * p.stride);
      mixed_grad_t = arena->take(kTile * p.width);
      query_grad_t = arena->take(kTile * p.width);
      weight_grad = arena->take(kTile * p.entries);
    }
  }
  float *x, *y;              // [T, Cp] pixels, where they cannot be read in place; pixels + pe
  float* normal;             // [T, Cp] the sum, then normalised
  float* query;              // [T, Dp]
  float *query_t, *mixed_t;  // [D, T]
  float* weight;             // [K, T]; backward [H, K, T]
  // backward
  float *grad, *output, *through;       // [T, Cp]
  float* mixed_grad;                    // [T, Dp]
  float *mixed_grad_t, *query_grad_t;   // [D, T]
  float* weight_grad;                   // [K, T]
};

inline int64_t refine_projected_scratch(const ProjectedSizes& p) {
  Arena count{nullptr, 0};
  RefineProjectedTile(p, &count);
  return count.used;
}

// Loads a tile and projects it to queries, bias included. Returns its pixels.
inline Rows project_refine(const RefineProjectedInputs& in, const ProjectedSizes& p, const RefineProjectedPacked& packed,
                           Chunk chunk, int64_t first, int64_t rows, const RefineProjectedTile& tile) {
  const PassShape& s = in.pass.shape;
  const int64_t at = (chunk.batch * s.pixels + first) * s.channels;
  const Rows x = load_rows(s, p.pass, in.pass.pixels, at, rows, tile.x);
  add_pe(in.pass, p.pass, s.shared_pe ? first * s.channels : at, rows, x, tile.y);
  for (int64_t n = 0; n < rows; ++n) {
    __builtin_memcpy(tile.query + n * p.stride, packed.query_bias, p.widths * 4);
  }
  gemm(rows, p.widths, s.channels, {tile.y, p.pass.channels, 1}, packed.query_weight_t, p.widths, tile.query, p.stride, true);
  transpose_tile(p, rows, tile.query, tile.query_t);
  return x;
}

// Softmax over the entries, in place on scores [K, T].
inline void softmax_rows(const ProjectedSizes& p, int64_t columns, float* score) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    float* at = score + n;
    Vec top = load(at);
    for (int64_t k = 1; k < p.entries; ++k) {
      top = maximum(load(at + k * kTile), top);
    }
    Vec sum{};
    for (int64_t k = 0; k < p.entries; ++k) {
      const Vec e = exponential(load(at + k * kTile) - top);
      store(at + k * kTile, e);
      sum += e;
    }
    const Vec inverse = splat(1.0f) / sum;
    for (int64_t k = 0; k < p.entries; ++k) {
      store(at + k * kTile, load(at + k * kTile) * inverse);
    }
  }
}

// grad = A * (grad - sum over the entries of A grad), in place; both [K, T].
inline void softmax_rows_backward(const ProjectedSizes& p, int64_t columns, const float* weight, float* grad) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    Vec dot{};
    for (int64_t k = 0; k < p.entries; ++k) {
      dot += load(weight + k * kTile + n) * load(grad + k * kTile + n);
    }
    for (int64_t k = 0; k < p.entries; ++k) {
      float* at = grad + k * kTile + n;
      store(at, load(weight + k * kTile + n) * (load(at) - dot));
    }
  }
}

// tile.normal [T, Cp] = (u - mean) / sigma, u = x + W_O mixed + b_O, with dictionary `index`; in the backward the weights
// of all heads stay in tile.weight.
inline void update_projected(const RefineProjectedInputs& in, const ProjectedSizes& p, const RefineProjectedPacked& packed,
                             int64_t index, int64_t rows, Rows x, const RefineProjectedTile& tile,
                             float* inverse_sigma) {
  const int64_t columns = pixel_columns(rows), channels = p.pass.channels;
  const float* key = in.key + index * p.entries * p.width;
  const float* value = in.value + index * p.entries * p.width;
  for (int64_t h = 0; h < p.heads; ++h) {
    const int64_t head = h * p.depth;
    float* weight = tile.weight + (p.backward ? h * p.entries * kTile : 0);
    gemm(p.entries, columns, p.depth, {key + head, p.width, 1}, tile.query_t + head * kTile, kTile, weight, kTile, false);
    softmax_rows(p, columns, weight);
    gemm(p.depth, columns, p.entries, {value + head, 1, p.width}, weight, kTile, tile.mixed_t + head * kTile, kTile, false);
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      store(tile.normal + n * channels + c, load(x.data + n * x.stride + c) + load(packed.norm.out_bias + c));
    }
  }
  gemm(rows, channels, p.width, {tile.mixed_t, 1, kTile}, packed.out_weight_t, channels, tile.normal, channels, true);
  normalise(in.pass, p.pass, rows, tile.normal, inverse_sigma);
}

inline void refine_projected_chunk(const RefineProjectedForward& call, const ProjectedSizes& p,
                                   const RefineProjectedPacked& packed, Chunk chunk, float* scratch) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  Arena arena{scratch, 0};
  const RefineProjectedTile tile(p, &arena);
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile;
    const Rows x = project_refine(in, p, packed, chunk, first, rows, tile);
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t index = g * s.batch + chunk.batch;
      float inverse_sigma[kTile];
      update_projected(in, p, packed, index, rows, x, tile, inverse_sigma);
      scale_and_shift(in.pass, p.pass, packed.norm, rows, tile.normal, tile.normal, call.refined,
                      (index * s.pixels + first) * s.channels);
    }
  }
}

inline void refine_projected_backward_chunk(const RefineProjectedBackward& call, const ProjectedSizes& p,
                                            const RefineProjectedPacked& packed, Chunk chunk,
                                            const RefineProjectedPartial& partial, float* through_pe, float* scratch) {
  const RefineProjectedInputs& in = call.in;
  const PassShape& s = in.pass.shape;
  const int64_t channels = p.pass.channels, rows_of_head = p.entries * p.depths;
  Arena arena{scratch, 0};
  const RefineProjectedTile tile(p, &arena);
  clear_slack(p, tile.query);
  clear_slack(p, tile.mixed_grad);
  clear(partial.key, p.groups * p.heads * rows_of_head);
  clear(partial.value, p.groups * p.heads * rows_of_head);
  clear(partial.query_weight, p.width * channels);
  clear(partial.out_weight_t, p.width * channels);
  clear(partial.query_bias, p.width);
  clear(partial.vectors, 3 * channels);
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile, columns = pixel_columns(rows);
    const Rows x = project_refine(in, p, packed, chunk, first, rows, tile);
    for (int64_t g = 0; g < p.groups; ++g) {
      const int64_t index = g * s.batch + chunk.batch;
      const int64_t at = (index * s.pixels + first) * s.channels;
      float inverse_sigma[kTile];
      update_projected(in, p, packed, index, rows, x, tile, inverse_sigma);
      const Rows grad = load_rows(s, p.pass, call.grad_refined, at, rows, tile.grad);
      if (grad.data != tile.grad) {
        __builtin_memcpy(tile.grad, grad.data, rows * channels * 4);
      }
      normalise_backward(s, p.pass, packed.norm, rows, tile.normal, inverse_sigma, tile.grad, partial.vectors);
      gemm(p.width, channels, rows, {tile.mixed_t, kTile, 1}, tile.grad, channels, partial.out_weight_t, channels, true);
      gemm(rows, p.widths, s.channels, {tile.grad, channels, 1}, packed.out_weight, p.widths, tile.mixed_grad, p.stride,
           false);
      transpose_tile(p, rows, tile.mixed_grad, tile.mixed_grad_t);
      const float* key = in.key + index * p.entries * p.width;
      const float* value = in.value + index * p.entries * p.width;
      for (int64_t h = 0; h < p.heads; ++h) {
        const int64_t head = h * p.depth, head_t = head * kTile, sum_at = (g * p.heads + h) * rows_of_head;
        const float* weight = tile.weight + h * p.entries * kTile;
        gemm(p.entries, p.depths, rows, {weight, kTile, 1}, tile.mixed_grad + head, p.stride, partial.value + sum_at,
             p.depths, true);
        gemm(p.entries, columns, p.depth, {value + head, p.width, 1}, tile.mixed_grad_t + head_t, kTile,
             tile.weight_grad, kTile, false);
        softmax_rows_backward(p, columns, weight, tile.weight_grad);
        gemm(p.entries, p.depths, rows, {tile.weight_grad, kTile, 1}, tile.query + head, p.stride, partial.key + sum_at,
             p.depths, true);
        gemm(p.depth, columns, p.entries, {key + head, 1, p.width}, tile.weight_grad, kTile, tile.query_grad_t + head_t,
             kTile, g > 0);
      }
      for (int64_t i = 0; i < rows * channels; i += kLanes) {
        store(tile.output + i, g > 0 ? load(tile.output + i) + load(tile.grad + i) : load(tile.grad + i));
      }
    }
    for (int64_t i = 0; i < p.width; ++i) {
      Vec sum{};
      for (int64_t n = 0; n < columns; n += kLanes) {
        sum += load(tile.query_grad_t + i * kTile + n);  // zero beyond the tile's pixels
      }
      partial.query_bias[i] += sum_lanes(sum);
    }
    gemm(p.width, channels, rows, {tile.query_grad_t, kTile, 1}, tile.y, channels, partial.query_weight, channels, true);
    float* through = through_pe != nullptr ? tile.through : nullptr;
    project_backward(p, rows, tile.query_grad_t, packed.query_weight, tile.output, through);
    copy_through(s, p, first, rows, through, through_pe);
    for (int64_t n = 0; n < rows; ++n) {
      narrow(s.dtype, tile.output + n * channels, call.grad_pixels,
             ((chunk.batch * s.pixels + first) + n) * s.channels, s.channels);
    }
  }
}

inline ProjectedKernels projected_kernels() {
  return {kLanes,
          attend_projected_scratch,
          refine_projected_scratch,
          attend_projected_chunk,
          attend_projected_backward_chunk,
          refine_projected_chunk,
          refine_projected_backward_chunk,
          narrow};
}
