// attend for one chunk of pixels. Included inside the namespace of one instruction set; see isa_*.cpp.

// Pixels in a tile: with C = 256 the tile, its scores and the query side fit in a 512 kB second-level cache.
constexpr int64_t kTile = 64;

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct Tile {
  float* x;       // [T, Cp] pixels in float32, only where they cannot be read in place
  float* y;       // [T, Cp] pixels + pe
  float* score;   // [T, Jp]
  float* grad;    // [T, Jp]
  float* output;  // [T, Cp]
};

inline Tile carve(const AttendShape& s, void* scratch) {
  const int64_t wide = kTile * padded(s.channels), narrow = kTile * padded(s.rows);
  float* base = static_cast<float*>(scratch);
  return {base, base + wide, base + 3 * wide, base + 3 * wide + narrow, base + 2 * wide};
}

inline int64_t scratch_bytes(const AttendShape& s) { return 4 * kTile * (3 * padded(s.channels) + 2 * padded(s.rows)); }

// Forms x + pe of `rows` pixels in the tile; returns the pixels themselves as float32 rows and their stride.
inline const float* load_tile(const AttendShape& s, const void* pixels, const void* pixel_pe, int64_t batch,
                              int64_t first, int64_t rows, const Tile& tile, int64_t* stride) {
  const int64_t c = s.channels, cp = padded(c);
  const int64_t at = (batch * s.pixels + first) * c;
  const int64_t pe_at = s.shared_pe ? first * c : at;
  if (s.dtype == Dtype::f32 && c == cp) {
    const float* x = static_cast<const float*>(pixels) + at;
    const float* pe = static_cast<const float*>(pixel_pe) + pe_at;
    for (int64_t i = 0; i < rows * c; i += kLanes) {
      store(tile.y + i, load(x + i) + load(pe + i));
    }
    *stride = c;
    return x;
  }
  for (int64_t n = 0; n < rows; ++n) {
    float* x = tile.x + n * cp;
    float* y = tile.y + n * cp;
    widen(s.dtype, pixels, at + n * c, x, c);
    widen(s.dtype, pixel_pe, pe_at + n * c, y, c);
    for (int64_t i = c; i < cp; ++i) {
      x[i] = y[i] = 0.0f;
    }
    for (int64_t i = 0; i < cp; i += kLanes) {
      store(y + i, load(x + i) + load(y + i));
    }
  }
  *stride = cp;
  return tile.x;
}

inline void attend_forward_chunk(const AttendForward& call, const AttendPacked& packed, AttendChunk chunk, float* acc,
                                 float* row_max, float* row_sum, void* scratch) {
  const AttendShape& s = call.shape;
  const int64_t cp = padded(s.channels), jp = padded(s.rows);
  const Tile tile = carve(s, scratch);
  for (int64_t i = 0; i < s.rows * cp; i += kLanes) {
    store(acc + i, Vec{});
  }
  for (int64_t j = 0; j < jp; j += kLanes) {
    store(row_max + j, splat(-__builtin_inff()));
    store(row_sum + j, Vec{});
  }
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile;
    int64_t stride;
    const float* x = load_tile(s, call.pixels, call.pixel_pe, chunk.batch, first, rows, tile, &stride);
    gemm(rows, jp, s.channels, {tile.y, cp, 1}, packed.query_t, jp, tile.score, jp, false);
    for (int64_t j = 0; j < jp; j += kLanes) {
      const Vec before = load(row_max + j);
      Vec top = before;
      for (int64_t n = 0; n < rows; ++n) {
        top = maximum(load(tile.score + n * jp + j), top);
      }
      const Vec scale = exponential(before - top);
      Vec sum = load(row_sum + j) * scale;
      for (int64_t n = 0; n < rows; ++n) {
        const Vec weight = exponential(load(tile.score + n * jp + j) - top);
        store(tile.score + n * jp + j, weight);
        sum += weight;
      }
      store(row_max + j, top);
      store(row_sum + j, sum);
      for (int64_t i = 0; i < kLanes && j + i < s.rows; ++i) {
        if (scale[i] != 1.0f) {
          float* row = acc + (j + i) * cp;
          for (int64_t c = 0; c < cp; c += kLanes) {
            store(row + c, load(row + c) * splat(scale[i]));
          }
        }
      }
    }
    gemm(s.rows, cp, rows, {tile.score, 1, jp}, x, stride, acc, cp, true);
  }
}

inline void attend_backward_chunk(const AttendBackward& call, const AttendPacked& packed, AttendChunk chunk,
                                  float* grad_query, float* through_scores, void* scratch) {
  const AttendShape& s = call.shape;
  const int64_t c = s.channels, cp = padded(c), jp = padded(s.rows);
  const Tile tile = carve(s, scratch);
  for (int64_t i = 0; i < s.rows * cp; i += kLanes) {
    store(grad_query + i, Vec{});
  }
  for (int64_t first = chunk.begin; first < chunk.end; first += kTile) {
    const int64_t rows = chunk.end - first < kTile ? chunk.end - first : kTile;
    int64_t stride;
    const float* x = load_tile(s, call.pixels, call.pixel_pe, chunk.batch, first, rows, tile, &stride);
    gemm(rows, jp, c, {tile.y, cp, 1}, packed.query_t, jp, tile.score, jp, false);
    gemm(rows, jp, c, {x, stride, 1}, packed.grad_t, jp, tile.grad, jp, false);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t j = 0; j < jp; j += kLanes) {
        const Vec weight = exponential(load(tile.score + n * jp + j) - load(packed.lse + j));
        store(tile.score + n * jp + j, weight);
        store(tile.grad + n * jp + j, weight * (load(tile.grad + n * jp + j) - load(packed.offset + j)));
      }
    }
    gemm(s.rows, cp, rows, {tile.grad, 1, jp}, tile.y, cp, grad_query, cp, true);

    const int64_t at = (chunk.batch * s.pixels + first) * c;
    const bool in_place = s.dtype == Dtype::f32 && c == cp;
    float* output = in_place ? static_cast<float*>(call.grad_pixels) + at : tile.output;
    gemm(rows, cp, s.rows, {tile.grad, jp, 1}, packed.query, cp, output, cp, false);
    if (through_scores != nullptr) {
      for (int64_t n = 0; n < rows; ++n) {
        __builtin_memcpy(through_scores + (first + n) * c, output + n * cp, c * 4);
      }
    }
    gemm(rows, cp, s.rows, {tile.score, jp, 1}, packed.grad, cp, output, cp, true);
    if (!in_place) {
      for (int64_t n = 0; n < rows; ++n) {
        narrow(s.dtype, output + n * cp, call.grad_pixels, at + n * c, c);
      }
    }
  }
}

inline AttendKernels attend_kernels() {
  return {kLanes, scratch_bytes, attend_forward_chunk, attend_backward_chunk, widen, narrow};
}
