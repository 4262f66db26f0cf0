// The pyramid's forward: products of the coarse levels, and the pass over the finest; see pyramid.h.
// Included inside the namespace of one instruction set; see isa_*.cpp.

constexpr int64_t kPyramidTile = 64;  // pixels of a tile
constexpr int64_t kPyramidBlock = 4;  // vectors of channels that a pixel sums in registers

inline int64_t padded_to_vectors(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// The result's own rows can be worked on in place, or the incoming gradient's read in place.
inline bool whole_rows(const PyramidShape& shape) {
  return shape.dtype == Dtype::f32 && shape.channels % kLanes == 0;
}

// A tile [T, Cp] and the tile's map [T, c] (also transposed), and in the backward the gradient of the map [T, c padded].
inline int64_t pyramid_scratch(const PyramidShape& shape, int64_t level_channels) {
  return kPyramidTile * (shape.padded + level_channels + padded_to_vectors(level_channels));
}

// Channels [first, first + count) of the tile's pixels as a left factor [T, count]; through scratch unless float32.
inline Strided pyramid_tile(const PyramidShape& shape, const PyramidMap& map, const PyramidPart& part, int64_t begin,
                            int64_t pixels, float* scratch) {
  const int64_t first = map.offset(part.batch, part.first_channel, begin);
  const int64_t channels = part.last_channel - part.first_channel;
  if (shape.dtype == Dtype::f32) {
    return {static_cast<const float*>(map.data) + first, map.pixel_stride, map.channel_stride};
  }
  if (map.pixel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      widen(shape.dtype, map.data, first + c * map.channel_stride, scratch + c * kPyramidTile, pixels);
    }
    return {scratch, 1, kPyramidTile};
  }
  for (int64_t n = 0; n < pixels; ++n) {
    widen(shape.dtype, map.data, first + n * map.pixel_stride, scratch + n * channels, channels);
  }
  return {scratch, channels, 1};
}

inline void pyramid_multiply(const PyramidShape& shape, const PyramidLevel& level, const float* weight_t,
                             const PyramidPart& part, float* product, float* scratch) {
  for (int64_t begin = part.begin; begin < part.end; begin += kPyramidTile) {
    const int64_t pixels = part.end - begin < kPyramidTile ? part.end - begin : kPyramidTile;
    gemm(pixels, shape.padded, level.channels, pyramid_tile(shape, level.feature, part, begin, pixels, scratch), weight_t,
         shape.padded, product + (part.batch * level.pixels() + begin) * shape.padded, shape.padded, false);
  }
}

// kVecs vectors of channels from c on: bias and the four taps of every coarse level.
template <int kVecs>
inline void upsample_vectors(const PyramidShape& shape, const float* bias, const PyramidCoarse* coarse,
                             int64_t coarse_levels, int64_t batch, int64_t y, int64_t x, int64_t c, float* out) {
  Vec sum[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    sum[v] = load(bias + c + v * kLanes);
  }
  for (int64_t i = 0; i < coarse_levels; ++i) {
    const PyramidCoarse& level = coarse[i];
    const PyramidTap row = level.rows[y], column = level.columns[x];
    const float* image = level.product + batch * level.height * level.width * shape.padded + c;
    const float* top = image + row.low * level.width * shape.padded;
    const float* bottom = image + row.high * level.width * shape.padded;
    const int64_t left = column.low * shape.padded, right = column.high * shape.padded;
    const Vec top_left = splat(row.low_weight * column.low_weight);
    const Vec top_right = splat(row.low_weight * column.high_weight);
    const Vec bottom_left = splat(row.high_weight * column.low_weight);
    const Vec bottom_right = splat(row.high_weight * column.high_weight);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const int64_t at = v * kLanes;
      sum[v] += top_left * load(top + left + at) + top_right * load(top + right + at);
      sum[v] += bottom_left * load(bottom + left + at) + bottom_right * load(bottom + right + at);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    store(out + c + v * kLanes, sum[v]);
  }
}

inline void pyramid_sum(const PyramidShape& shape, const PyramidLevel& level, const float* weight_t, const float* bias,
                        const PyramidCoarse* coarse, int64_t coarse_levels, const PyramidPart& part, void* fused,
                        float* scratch) {
  const bool in_place = whole_rows(shape);
  float* own = scratch + kPyramidTile * shape.padded;
  for (int64_t begin = part.begin; begin < part.end; begin += kPyramidTile) {
    const int64_t pixels = part.end - begin < kPyramidTile ? part.end - begin : kPyramidTile;
    const int64_t first = (part.batch * shape.height * shape.width + begin) * shape.channels;
    float* tile = in_place ? static_cast<float*>(fused) + first : scratch;
    for (int64_t n = 0; n < pixels; ++n) {
      const int64_t y = (begin + n) / shape.width, x = (begin + n) % shape.width;
      float* out = tile + n * shape.padded;
      int64_t c = 0;
      for (; c + kPyramidBlock * kLanes <= shape.padded; c += kPyramidBlock * kLanes) {
        upsample_vectors<kPyramidBlock>(shape, bias, coarse, coarse_levels, part.batch, y, x, c, out);
      }
      for (; c < shape.padded; c += kLanes) {
        upsample_vectors<1>(shape, bias, coarse, coarse_levels, part.batch, y, x, c, out);
      }
    }
    gemm(pixels, shape.padded, level.channels, pyramid_tile(shape, level.feature, part, begin, pixels, own), weight_t,
         shape.padded, tile, shape.padded, true);
    if (!in_place) {
      for (int64_t n = 0; n < pixels; ++n) {
        narrow(shape.dtype, tile + n * shape.padded, fused, first + n * shape.channels, shape.channels);
      }
    }
  }
}
