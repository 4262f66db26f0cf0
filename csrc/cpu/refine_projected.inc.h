// Refine with projections over one chunk of pixels; see projected.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

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
