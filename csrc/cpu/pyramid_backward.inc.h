// The pyramid's backward: the adjoint of the upsampling, and each level's products; see pyramid.h.
// Included inside the namespace of one instruction set after pyramid.inc.h; see isa_*.cpp.

// kVecs vectors of one coarse pixel's gradient: the weighted sum of its fine pixels, read from row first_row on at grad.
template <int kVecs>
inline void gather_vectors(const PyramidGather& rows, const PyramidGather& columns, const float* grad, int64_t first_row,
                           int64_t row_stride, int64_t stride, float* out) {
  Vec sum[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    sum[v] = Vec{};
  }
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const float* pixel = grad + (y - first_row) * row_stride + columns.begin * stride;
    Vec line[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      line[v] = Vec{};
    }
    for (int64_t x = 0; x < columns.end - columns.begin; ++x) {
      const Vec weight = splat(columns.weights[x]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        line[v] += weight * load(pixel + x * stride + v * kLanes);
      }
    }
    const Vec weight = splat(rows.weights[y - rows.begin]);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      sum[v] += weight * line[v];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    store(out + v * kLanes, sum[v]);
  }
}

inline void pyramid_gather(const PyramidShape& shape, const void* grad_fused, const PyramidCoarse* coarse,
                           int64_t coarse_levels, int64_t batch, int64_t first_channel, int64_t band, int64_t bands,
                           float* scratch) {
  constexpr int64_t kChannels = kPyramidBlock * kLanes;
  const int64_t real = shape.channels - first_channel < kChannels ? shape.channels - first_channel : kChannels;
  const int64_t padded = padded_to_vectors(real);
  const int64_t image = batch * shape.height * shape.width * shape.channels + first_channel;
  const float* grad = static_cast<const float*>(grad_fused) + image;
  int64_t stride = shape.channels, first_row = 0;
  if (scratch != nullptr) {
    const PyramidRows rows = pyramid_band_rows(coarse, coarse_levels, band, bands);
    for (int64_t n = rows.begin * shape.width; n < rows.end * shape.width; ++n) {
      float* to = scratch + (n - rows.begin * shape.width) * padded;
      widen(shape.dtype, grad_fused, image + n * shape.channels, to, real);
      for (int64_t c = real; c < padded; ++c) {
        to[c] = 0.0f;
      }
    }
    stride = padded;
    grad = scratch;
    first_row = rows.begin;
  }
  for (int64_t i = 0; i < coarse_levels; ++i) {
    const PyramidCoarse& level = coarse[i];
    for (int64_t y = level.height * band / bands; y < level.height * (band + 1) / bands; ++y) {
      for (int64_t x = 0; x < level.width; ++x) {
        const PyramidGather& rows = level.row_gathers[y];
        const PyramidGather& columns = level.column_gathers[x];
        float* out = level.product + ((batch * level.height + y) * level.width + x) * shape.padded + first_channel;
        if (padded == kChannels) {
          gather_vectors<kPyramidBlock>(rows, columns, grad, first_row, shape.width * stride, stride, out);
        } else {
          for (int64_t c = 0; c < padded; c += kLanes) {
            gather_vectors<1>(rows, columns, grad + c, first_row, shape.width * stride, stride, out + c);
          }
        }
      }
    }
  }
}

// to[i][j] = from[j][i] of 4 x 4 values.
inline void transpose_quads(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  using Quad = VectorOf<4>::Float;
  const Quad a = load<4>(from), b = load<4>(from + from_stride);
  const Quad c = load<4>(from + 2 * from_stride), d = load<4>(from + 3 * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store(to + i * to_stride, Quad{a[i], b[i], c[i], d[i]});
  }
}

// Rows [T, padded channels] in float32 to the map's channels of the tile's pixels.
inline void pyramid_store(const PyramidShape& shape, const PyramidMap& map, const PyramidPart& part, int64_t begin,
                          int64_t pixels, const float* rows, int64_t stride) {
  const int64_t channels = part.last_channel - part.first_channel;
  const int64_t first = map.offset(part.batch, part.first_channel, begin);
  if (map.pixel_stride != 1) {
    for (int64_t n = 0; n < pixels; ++n) {
      narrow(shape.dtype, rows + n * stride, map.data, first + n * map.pixel_stride, channels);
    }
    return;
  }
  float lines[4][kPyramidTile];
  for (int64_t c = 0; c < channels; c += 4) {
    for (int64_t n = 0; n < kPyramidTile; n += 4) {
      transpose_quads(rows + n * stride + c, stride, &lines[0][n], kPyramidTile);
    }
    for (int64_t i = 0; i < 4 && c + i < channels; ++i) {
      narrow(shape.dtype, lines[i], map.data, first + (c + i) * map.channel_stride, pixels);
    }
  }
}

inline void add_rows(const float* rows, int64_t count, int64_t channels, float* sum) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec total = load(rows + c);
    for (int64_t n = 1; n < count; ++n) {
      total += load(rows + n * channels + c);
    }
    store(sum + c, load(sum + c) + total);
  }
}

inline void pyramid_backward_part(const PyramidShape& shape, const PyramidLevel& level, const float* weight,
                                  const void* grad_fused, const float* coarse, const PyramidPart& part,
                                  float* grad_weight_t, float* grad_bias, float* scratch) {
  const int64_t channels = part.last_channel - part.first_channel;
  const int64_t padded = padded_to_vectors(channels), weight_stride = padded_to_vectors(level.channels);
  float* own = scratch + kPyramidTile * shape.padded;
  float* grad_own = own + kPyramidTile * level.channels;
  if (grad_bias != nullptr) {
    for (int64_t c = 0; c < shape.padded; ++c) {
      grad_bias[c] = 0.0f;
    }
  }
  for (int64_t begin = part.begin; begin < part.end; begin += kPyramidTile) {
    const int64_t pixels = part.end - begin < kPyramidTile ? part.end - begin : kPyramidTile;
    const int64_t row = part.batch * level.pixels() + begin;
    const float* grad = scratch;
    if (coarse != nullptr) {
      grad = coarse + row * shape.padded;
    } else if (whole_rows(shape)) {
      grad = static_cast<const float*>(grad_fused) + row * shape.padded;
    } else {
      for (int64_t n = 0; n < pixels; ++n) {
        float* to = scratch + n * shape.padded;
        widen(shape.dtype, grad_fused, (row + n) * shape.channels, to, shape.channels);
        for (int64_t c = shape.channels; c < shape.padded; ++c) {
          to[c] = 0.0f;
        }
      }
    }
    const Strided tile = pyramid_tile(shape, level.feature, part, begin, pixels, own);
    gemm(channels, shape.padded, pixels, {tile.data, tile.depth, tile.row}, grad, shape.padded, grad_weight_t,
         shape.padded, begin > part.begin);
    if (grad_bias != nullptr) {
      add_rows(grad, pixels, shape.padded, grad_bias);
    }
    if (level.grad_feature.data != nullptr) {
      gemm(pixels, padded, shape.channels, {grad, shape.padded, 1}, weight + part.first_channel, weight_stride, grad_own,
           padded, false);
      pyramid_store(shape, level.grad_feature, part, begin, pixels, grad_own, padded);
    }
  }
}

inline PyramidKernels pyramid_kernels() {
  return {kLanes,         kPyramidBlock * kLanes, pyramid_scratch, pyramid_multiply, pyramid_sum, pyramid_gather,
          pyramid_backward_part, widen,           narrow};
}
