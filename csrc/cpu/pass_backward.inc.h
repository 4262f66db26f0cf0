// The pass over one strip of pixels: gradients; see pass.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

// dz = A * (dA - sum over the entries of A dA), in place on dA [T, groups]; adds up grad_key_bias.
template <int kShort>
inline void softmax_entries_backward(const PassShape& s, const PassSizes& p, int64_t rows, const float* weight,
                                     float* grad, float* bias_grad) {
  using Short = typename VectorOf<kShort>::Float;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t h = 0; h < p.heads; h += kShort) {
      const float* a = weight + n * p.groups + h;
      float* g = grad + n * p.groups + h;
      Short dot{};
      for (int64_t k = 0; k < s.entries; ++k) {
        dot += load<kShort>(a + k * p.heads) * load<kShort>(g + k * p.heads);
      }
      for (int64_t k = 0; k < s.entries; ++k) {
        const Short dz = load<kShort>(a + k * p.heads) * (load<kShort>(g + k * p.heads) - dot);
        store(g + k * p.heads, dz);
        store(bias_grad + h + k * p.heads, load<kShort>(bias_grad + h + k * p.heads) + dz);
      }
    }
  }
}

// Adds the gradient of attend with respect to x (and y = x + pe) to output [T, Cp]; the part through y also to `through`.
inline void attend_tile_backward(const PassShape& s, const PassSizes& p, const PassPacked& packed, int64_t rows, Pixels x,
                                 const Element* y, const Tile& tile, float* grad_query, float* output, bool first,
                                 float* through) {
  product(rows, {y, p.channels}, s.channels, packed.query_t, p.rows, tile.score, false);
  product(rows, x, s.channels, packed.grad_t, p.rows, tile.score_grad, false);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t j = 0; j < p.rows; j += kLanes) {
      const int64_t at = n * p.rows + j;
      const Vec weight = exponential(load(tile.score + at) - load(packed.lse + j));
      store(tile.score + at, weight);
      store(tile.score_grad + at, weight * (load(tile.score_grad + at) - load(packed.offset + j)));
    }
  }
  const RowsOf<Factor> along = along_pixels(rows, p.rows, Rows{tile.score_grad, p.rows}, tile.narrow_room);
  const RowsOf<Factor> y_along = along_pixels(rows, p.channels, Pixels{y, p.channels}, tile.wide_room);
  product_over_pixels(rows, s.rows, along, y_along, p.channels, grad_query);
  const Pixels weight = elements(rows, p.rows, tile.score, tile.room);
  product(rows, weight, s.rows, packed.grad, p.channels, output, !first);
  const Pixels score_grad = elements(rows, p.rows, tile.score_grad, tile.room);
  if (through == nullptr) {
    product(rows, score_grad, s.rows, packed.query, p.channels, output, true);
    return;
  }
  product(rows, score_grad, s.rows, packed.query, p.channels, through, false);
  for (int64_t i = 0; i < rows * p.channels; i += kLanes) {
    store(output + i, load(output + i) + load(through + i));
  }
}

// output [T, Cp] = gradient of u, from the gradient of x' that it holds; adds up the three vector gradients.
inline void normalise_backward(const PassShape& s, const PassSizes& p, const PassPacked& packed, int64_t rows,
                               const float* normal, const float* inverse_sigma, float* output, float* vectors) {
  float* grad_out_bias = vectors;
  float* grad_weight = vectors + p.channels;
  float* grad_bias = vectors + 2 * p.channels;
  for (int64_t n = 0; n < rows; ++n) {
    const float* u = normal + n * p.channels;
    float* g = output + n * p.channels;
    Vec sum{}, dot{};
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const Vec grad = load(g + c), hat = load(u + c);
      store(grad_bias + c, load(grad_bias + c) + grad);
      store(grad_weight + c, load(grad_weight + c) + grad * hat);
      const Vec scaled = grad * load(packed.norm_weight + c);
      store(g + c, scaled);
      sum += scaled;
      dot += scaled * hat;
    }
    const float mean = sum_lanes(sum) / static_cast<float>(s.channels);
    const float slope = sum_lanes(dot) / static_cast<float>(s.channels);
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const Vec v = (load(g + c) - splat(mean) - load(u + c) * splat(slope)) * splat(inverse_sigma[n]);
      store(g + c, v);
    }
    clear(g + s.channels, p.channels - s.channels);
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      store(grad_out_bias + c, load(grad_out_bias + c) + load(g + c));
    }
  }
}

// From the gradient of u in output [T, Cp] to the gradient of x, added in place.
inline void refine_tile_backward(const PassShape& s, const PassSizes& p, const PassPacked& packed, int64_t rows,
                                 const Tile& tile, const PassPartial& partial, float* output, bool first,
                                 float* through) {
  const Pixels sum_grad = elements(rows, p.channels, output, tile.room);
  product_over_pixels(rows, p.group_rows, along_pixels(rows, p.groups, Rows{tile.weight, p.groups}, tile.narrow_room),
                      along_pixels(rows, p.channels, sum_grad, tile.wide_room), p.channels, partial.value);
  product(rows, sum_grad, s.channels, packed.value_t, p.groups, tile.weight_grad, false);
  if (p.heads % 8 == 0) {
    softmax_entries_backward<8>(s, p, rows, tile.weight, tile.weight_grad, partial.key_bias);
  } else {
    softmax_entries_backward<4>(s, p, rows, tile.weight, tile.weight_grad, partial.key_bias);
  }
  product_over_pixels(rows, p.group_rows,
                      along_pixels(rows, p.groups, Rows{tile.weight_grad, p.groups}, tile.narrow_room),
                      along_pixels(rows, p.channels, Pixels{tile.y, p.channels}, tile.wide_room), p.channels, partial.key);
  const Pixels score_grad = elements(rows, p.groups, tile.weight_grad, tile.room);
  if (through != nullptr) {
    product(rows, score_grad, p.group_rows, packed.key, p.channels, through, !first);
  }
  product(rows, score_grad, p.group_rows, packed.key, p.channels, output, true);
}

// sum (+)= row, whose length need not be whole vectors.
inline void add_row(const float* row, int64_t count, bool accumulate, float* sum) {
  for (int64_t i = 0; i < count; ++i) {
    sum[i] = accumulate ? sum[i] + row[i] : row[i];
  }
}

inline void backward_strip(const PassBackward& call, const PassSizes& p, const PassPacked& packed,
                           const PassStrip& strip, const PassPartial& partial, float* through_pe, float* total,
                           float* scratch) {
  const PassInputs& in = call.in;
  const PassShape& s = in.shape;
  Arena arena{scratch, 0};
  const Tile tile(p, true, &arena);
  float* through = through_pe != nullptr ? tile.through : nullptr;
  const bool add = strip.dictionary > 0, last = strip.dictionary == s.dictionaries - 1;
  for (int64_t first = strip.begin; first < strip.end; first += kTile) {
    const int64_t rows = strip.end - first < kTile ? strip.end - first : kTile;
    const int64_t at = (strip.image * s.pixels + first) * s.channels;
    const int64_t pe_at = s.shared_pe ? first * s.channels : at;
    Pixels x = load_rows(s, p, in.pixels, at, rows, tile.x);
    add_pe(in, p, pe_at, rows, x, tile.y);
    float* sum = total == nullptr ? tile.output : total + (first - strip.begin) * p.channels;
    if (in_place(s, p)) {
      sum = static_cast<float*>(call.grad_pixels) + at;
    }
    float* output = add ? tile.output : sum;

    if (s.entries == 0) {
      attend_tile_backward(s, p, packed, rows, x, tile.y, tile, partial.acc, output, true, through);
    } else {
      float inverse_sigma[kTile];
      normalise_update(in, p, packed, rows, x, tile, tile.normal, inverse_sigma);
      const Rows grad = load_rows(s, p, call.grad_refined, row_of(s, strip, first) * s.channels, rows, output);
      if (grad.data != output) {
        __builtin_memcpy(output, grad.data, rows * p.channels * 4);
      }
      if (s.rows > 0) {
        scale_and_shift(in, p, packed, rows, tile.normal, tile.refined, nullptr, at);
        x = {tile.refined, p.channels};
        add_pe(in, p, pe_at, rows, x, tile.again);
        attend_tile_backward(s, p, packed, rows, x, tile.again, tile, partial.acc, output, false, through);
      }
      normalise_backward(s, p, packed, rows, tile.normal, inverse_sigma, output, partial.vectors);
      refine_tile_backward(s, p, packed, rows, tile, partial, output, s.rows == 0, through);
    }

    for (int64_t i = 0; i < rows * p.channels && add; i += kLanes) {
      store(sum + i, load(sum + i) + load(output + i));
    }
    for (int64_t n = 0; n < rows && through != nullptr; ++n) {
      add_row(through + n * p.channels, s.channels, add, through_pe + (first + n) * s.channels);
    }
    for (int64_t n = 0; n < rows && last && !in_place(s, p); ++n) {
      narrow(s.dtype, sum + n * p.channels, call.grad_pixels, at + n * s.channels, s.channels);
    }
  }
}

inline PassKernels pass_kernels() {
  return {kLanes, scratch_floats, forward_strip, backward_strip, widen, narrow, pack_factors, round_factors};
}
