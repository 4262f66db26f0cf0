// The pass over one strip of pixels: refine a tile, attend to it; see pass.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
