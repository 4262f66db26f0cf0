// Attend with projections over one chunk of pixels, forward and backward; see projected.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
