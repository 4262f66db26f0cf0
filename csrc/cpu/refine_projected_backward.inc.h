// Gradients of refine with projections over one chunk of pixels.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
