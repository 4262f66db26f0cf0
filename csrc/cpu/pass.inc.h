// The pass over one strip of pixels. Included inside the namespace of one instruction set; see isa_*.cpp.

// Pixels in a tile: with C = 256 the tile, its scores and the dictionary side fit in a second-level cache of 1 MB.
constexpr int64_t kTile = 64;

// Hands out the parts of a chunk's scratch memory; without memory it only counts.
struct Arena {
  float* memory;
  int64_t used;
  float* take(int64_t floats) {
    float* part = memory == nullptr ? nullptr : memory + used;
    used += (floats + 15) / 16 * 16;
    return part;
  }
};

// Pixels are Elements and products take Factors: see factors_*.inc.h.
struct Tile {
  Tile(const PassSizes& s, bool backward, Arena* arena) {
    const auto floats = [&](int64_t columns) { return arena->take(kTile * columns); };
    const auto pixels = [&](int64_t columns) {
      return reinterpret_cast<Element*>(arena->take(kTile * columns * static_cast<int64_t>(sizeof(Element)) / 4));
    };
    for (Element** part : {&x, &y, &refined, &again}) *part = pixels(s.channels);
    score = floats(s.rows);
    weight = floats(s.groups);
    if (backward || kRounded) {
      normal = floats(s.channels);
    }
    if (backward) {
      for (float** part : {&output, &through}) *part = floats(s.channels);
      score_grad = floats(s.rows);
      weight_grad = floats(s.groups);
    }
    if (kRounded) {
      const int64_t narrow = s.rows > s.groups ? s.rows : s.groups;
      room = pixels(narrow > s.channels ? narrow : s.channels);
      narrow_room = reinterpret_cast<Factor*>(pixels(narrow));
      wide_room = reinterpret_cast<Factor*>(pixels(s.channels));
    }
  }
  Element* x;        // [T, Cp] pixels, where they cannot be read in place
  Element* y;        // [T, Cp] pixels + pe
  Element* refined;  // [T, Cp] x', where it cannot be written in place
  Element* again;    // [T, Cp] x' + pe
  float* score;      // [T, Jp]
  float* weight;     // [T, groups]
  float* normal = nullptr;  // [T, Cp] normalised u
  // backward
  float* output = nullptr;       // [T, Cp]
  float* through = nullptr;      // [T, Cp]
  float* score_grad = nullptr;   // [T, Jp]
  float* weight_grad = nullptr;  // [T, groups]
  // where float32 matrices are rounded to Elements and paired to Factors
  Element* room = nullptr;        // [T, any]
  Factor* narrow_room = nullptr;  // [T, Jp] or [T, groups]
  Factor* wide_room = nullptr;    // [T, Cp]
};

inline int64_t scratch_floats(const PassSizes& s, bool backward) {
  Arena count{nullptr, 0};
  Tile(s, backward, &count);
  return count.used;
}

inline void clear(float* p, int64_t count) {
  if (p != nullptr) {
    __builtin_memset(p, 0, count * 4);
  }
}

// Float32 rows of tile pixels: read in place where the memory already is such rows, else widened into a buffer.
inline bool in_place(const PassShape& s, const PassSizes& p) { return s.dtype == Dtype::f32 && s.channels == p.channels; }

inline Rows load_rows(const PassShape& s, const PassSizes& p, const void* source, int64_t at, int64_t rows,
                      float* buffer) {
  if (in_place(s, p)) {
    return {static_cast<const float*>(source) + at, s.channels};
  }
  for (int64_t n = 0; n < rows; ++n) {
    widen(s.dtype, source, at + n * s.channels, buffer + n * p.channels, s.channels);
    clear(buffer + n * p.channels + s.channels, p.channels - s.channels);
  }
  return {buffer, p.channels};
}

// out [T, Cp] = x + pe
inline void add_pe(const PassInputs& in, const PassSizes& p, int64_t pe_at, int64_t rows, Pixels x, Element* out) {
  const Pixels pe = load_rows(in.shape, p, in.pixel_pe, pe_at, rows, out);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      store(out + n * p.channels + c, load(x.data + n * x.stride + c) + load(pe.data + n * pe.stride + c));
    }
  }
}

// out [T, columns] (+)= left times a packed matrix of `depth` rows
inline void product(int64_t rows, Pixels left, int64_t depth, const float* packed, int64_t columns, float* out,
                    bool accumulate) {
  gemm(rows, columns, depth_of(depth), left_factor(left), factors(packed), columns, out, columns, accumulate);
}

// out [count, columns] += left [T, >= count] transposed times right [T, columns]
inline void product_over_pixels(int64_t rows, int64_t count, RowsOf<Factor> left, RowsOf<Factor> right,
                                int64_t columns, float* out) {
  gemm(count, columns, depth_of(rows), {left.data, 1, left.stride}, right.data, right.stride, out, columns, true);
}

// A = softmax over the entries of each head, in place on scores [T, groups] without their bias.
template <int kShort>
inline void softmax_entries(const PassShape& s, const PassSizes& p, int64_t rows, const float* bias, float* weight) {
  using Short = typename VectorOf<kShort>::Float;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t h = 0; h < p.heads; h += kShort) {
      float* row = weight + n * p.groups + h;
      Short top = load<kShort>(row) + load<kShort>(bias + h);
      store(row, top);
      for (int64_t k = 1; k < s.entries; ++k) {
        const Short z = load<kShort>(row + k * p.heads) + load<kShort>(bias + h + k * p.heads);
        store(row + k * p.heads, z);
        top = maximum(z, top);
      }
      Short sum{};
      for (int64_t k = 0; k < s.entries; ++k) {
        const Short e = exponential(load<kShort>(row + k * p.heads) - top);
        store(row + k * p.heads, e);
        sum += e;
      }
      const Short inverse = 1.0f / sum;
      for (int64_t k = 0; k < s.entries; ++k) {
        store(row + k * p.heads, load<kShort>(row + k * p.heads) * inverse);
      }
    }
  }
}

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

// normal [T, Cp] = u = x + A value + out_bias
inline void add_update(const PassInputs& in, const PassSizes& p, const PassPacked& packed, int64_t rows, Pixels x,
                       const Tile& tile, float* normal) {
  const PassShape& s = in.shape;
  product(rows, {tile.y, p.channels}, s.channels, packed.key_t, p.groups, tile.weight, false);
  if (p.heads % 8 == 0) {
    softmax_entries<8>(s, p, rows, packed.key_bias, tile.weight);
  } else {
    softmax_entries<4>(s, p, rows, packed.key_bias, tile.weight);
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      store(normal + n * p.channels + c, load(x.data + n * x.stride + c) + load(packed.out_bias + c));
    }
  }
  const Pixels weight = elements(rows, p.groups, tile.weight, tile.room);
  product(rows, weight, p.group_rows, packed.value, p.channels, normal, true);
}

// normal [T, Cp] = (u - mean) / sigma, in place on u; returns 1 / sigma of every row.
inline void normalise(const PassInputs& in, const PassSizes& p, int64_t rows, float* normal, float* inverse_sigma) {
  const PassShape& s = in.shape;
  const float count = static_cast<float>(s.channels);
  const float padding = static_cast<float>(p.channels - s.channels);
  for (int64_t n = 0; n < rows; ++n) {
    float* u = normal + n * p.channels;
    Vec sum{};
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      sum += load(u + c);
    }
    const float mean = sum_lanes(sum) / count;
    Vec squares{};
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const Vec d = load(u + c) - splat(mean);
      squares += d * d;
    }
    // Padded channels are zero in u, so each of them added mean^2.
    const float variance = (sum_lanes(squares) - padding * mean * mean) / count;
    inverse_sigma[n] = 1.0f / __builtin_sqrtf(variance + in.eps);
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      store(u + c, (load(u + c) - splat(mean)) * splat(inverse_sigma[n]));
    }
    clear(u + s.channels, p.channels - s.channels);
  }
}

inline void normalise_update(const PassInputs& in, const PassSizes& p, const PassPacked& packed, int64_t rows, Pixels x,
                             const Tile& tile, float* normal, float* inverse_sigma) {
  add_update(in, p, packed, rows, x, tile, normal);
  normalise(in, p, rows, normal, inverse_sigma);
}

// x' = normal * norm_weight + norm_bias, as the dtype stores it: rounded, so that forward and backward see one value.
inline void scale_and_shift(const PassInputs& in, const PassSizes& p, const PassPacked& packed, int64_t rows,
                            const float* normal, Element* out, void* stored, int64_t at) {
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const Vec v = load(normal + n * p.channels + c) * load(packed.norm_weight + c) + load(packed.norm_bias + c);
      store(out + n * p.channels + c, v);
    }
    finish_row(in.shape, out + n * p.channels, stored, at + n * in.shape.channels);
  }
}

inline void attend_tile(const PassShape& s, const PassSizes& p, const PassPacked& packed, int64_t rows, Pixels x,
                        const Element* y, const Tile& tile, const PassPartial& partial) {
  float* score = tile.score;
  product(rows, {y, p.channels}, s.channels, packed.query_t, p.rows, score, false);
  for (int64_t j = 0; j < p.rows; j += kLanes) {
    const Vec before = load(partial.row_max + j);
    Vec top = before;
    for (int64_t n = 0; n < rows; ++n) {
      top = maximum(load(score + n * p.rows + j), top);
    }
    const Vec scale = exponential(before - top);
    Vec sum = load(partial.row_sum + j) * scale;
    for (int64_t n = 0; n < rows; ++n) {
      const Vec weight = exponential(load(score + n * p.rows + j) - top);
      store(score + n * p.rows + j, weight);
      sum += weight;
    }
    store(partial.row_max + j, top);
    store(partial.row_sum + j, sum);
    for (int64_t i = 0; i < kLanes && j + i < s.rows; ++i) {
      if (scale[i] != 1.0f) {
        float* row = partial.acc + (j + i) * p.channels;
        for (int64_t c = 0; c < p.channels; c += kLanes) {
          store(row + c, load(row + c) * splat(scale[i]));
        }
      }
    }
  }
  const RowsOf<Factor> weights = along_pixels(rows, p.rows, Rows{score, p.rows}, tile.narrow_room);
  product_over_pixels(rows, s.rows, weights, along_pixels(rows, p.channels, x, tile.wide_room), p.channels, partial.acc);
}

// Where a pixel of the strip's image stands in refined [G B, N, C].
inline int64_t row_of(const PassShape& s, const PassStrip& strip, int64_t pixel) {
  return (strip.dictionary * s.batch + strip.image) * s.pixels + pixel;
}

inline void forward_strip(const PassForward& call, const PassSizes& p, const PassPacked& packed, const PassStrip& strip,
                          const PassPartial& partial, float* scratch) {
  const PassInputs& in = call.in;
  const PassShape& s = in.shape;
  Arena arena{scratch, 0};
  const Tile tile(p, false, &arena);
  for (int64_t first = strip.begin; first < strip.end; first += kTile) {
    const int64_t rows = strip.end - first < kTile ? strip.end - first : kTile;
    const int64_t at = (strip.image * s.pixels + first) * s.channels;
    const int64_t pe_at = s.shared_pe ? first * s.channels : at;
    Pixels x = load_rows(s, p, in.pixels, at, rows, tile.x);
    add_pe(in, p, pe_at, rows, x, tile.y);
    const Element* y = tile.y;
    if (s.entries > 0) {
      float inverse_sigma[kTile];
      const int64_t to = row_of(s, strip, first) * s.channels;
      const bool direct = elements_in_place(s, p);
      Element* refined = direct ? static_cast<Element*>(call.refined) + to : tile.refined;
      float* normal = sums_for(refined, tile.normal);
      normalise_update(in, p, packed, rows, x, tile, normal, inverse_sigma);
      scale_and_shift(in, p, packed, rows, normal, refined, direct ? nullptr : call.refined, to);
      x = {refined, p.channels};
      if (s.rows > 0) {
        add_pe(in, p, pe_at, rows, x, tile.again);
        y = tile.again;
      }
    }
    if (s.rows > 0) {
      attend_tile(s, p, packed, rows, x, y, tile, partial);
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
