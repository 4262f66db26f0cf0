// 16 pixels of a warp in registers, as the rows of a product: LayerNorm, and their way out.
#pragma once

#include "cuda/products.cuh"

namespace d2ls::cuda {

// out_bias, norm_weight and norm_bias in shared memory, C floats each, zero beyond the channels.
template <int C>
struct Vectors {
  static constexpr uint32_t bytes = 3 * C * sizeof(float);
  uint32_t offset;

  D2LS_DEVICE void load(const float* out_bias, const float* norm_weight, const float* norm_bias, int channels,
                        int threads) const {
    for (int i = thread_index(); i < C; i += threads) {
      store_shared(offset + 4 * i, i < channels ? out_bias[i] : 0.0f);
      store_shared(offset + 4 * (C + i), i < channels ? norm_weight[i] : 0.0f);
      store_shared(offset + 4 * (2 * C + i), i < channels ? norm_bias[i] : 0.0f);
    }
  }
  // This lane's two of tile c of vector `which`.
  D2LS_DEVICE Two two(int which, int c) const {
    return load_shared<Two>(offset + 4 * (which * C + 8 * c + 2 * (thread_index() % 4)));
  }
};

// rows = x + out_bias, the rows of tile `x` from `row` on.
template <class M, int C>
D2LS_DEVICE void residual(float (&rows)[C / 8][4], uint32_t x, int row, const Vectors<C>& vectors, M) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  D2LS_UNROLL
  for (int c = 0; c < C / 8; ++c) {
    const Two bias = vectors.two(0, c);
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Two value = load_two<typename M::Number>(M::at(x, row + g + 8 * half, 8 * c + 2 * t));
      rows[c][2 * half] = value.first + bias.first;
      rows[c][2 * half + 1] = value.second + bias.second;
    }
  }
}

// LayerNorm over the channels, with the mean subtracted before squares are summed.
template <int C>
D2LS_DEVICE void normalise(float (&rows)[C / 8][4], const Vectors<C>& vectors, int channels, float eps) {
  float mean[2], scale[2];
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    float sum = 0, squares = 0;
    D2LS_UNROLL
    for (int c = 0; c < C / 8; ++c) {
      sum += rows[c][2 * half] + rows[c][2 * half + 1];  // zeros beyond the channels
    }
    mean[half] = quad_sum(sum) / channels;
    D2LS_UNROLL
    for (int c = 0; c < C / 8; ++c) {
      const float a = rows[c][2 * half] - mean[half], b = rows[c][2 * half + 1] - mean[half];
      squares += 8 * c < channels ? a * a + b * b : 0.0f;
    }
    scale[half] = inverse_root(quad_sum(squares) / channels + eps);
  }
  D2LS_UNROLL
  for (int c = 0; c < C / 8; ++c) {
    const Two weight = vectors.two(1, c), bias = vectors.two(2, c);
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      rows[c][2 * half] = (rows[c][2 * half] - mean[half]) * scale[half] * weight.first + bias.first;
      rows[c][2 * half + 1] = (rows[c][2 * half + 1] - mean[half]) * scale[half] * weight.second + bias.second;
    }
  }
}

// Writes the 16 rows to rows `row` on of a matrix of `channels` columns, those below `end`.
template <class T, int TILES>
D2LS_DEVICE void store_rows(const float (&rows)[TILES][4], T* to, int64_t row, int64_t end, int channels) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int64_t mine = row + g + 8 * half;
    T* line = to + mine * channels;
    if constexpr (sizeof(T) == 2) {
      // A lane has two columns of every tile; exchanged, it has all eight of every fourth: 16 bytes, and a quad 64.
      D2LS_UNROLL
      for (int c = 0; c < TILES; c += 4) {
        uint32_t words[4];
        D2LS_UNROLL
        for (int i = 0; i < 4; ++i) {
          words[i] = Pair<T>::pack(rows[c + i][2 * half], rows[c + i][2 * half + 1]);
        }
        quad_transpose(words);
        if (mine < end && 8 * (c + t) < channels) {
          *reinterpret_cast<Words*>(line + 8 * (c + t)) = {words[0], words[1], words[2], words[3]};
        }
      }
    } else {
      D2LS_UNROLL
      for (int c = 0; c < TILES; ++c) {
        if (mine < end && 8 * c < channels) {
          *reinterpret_cast<Two*>(line + 8 * c + 2 * t) = {rows[c][2 * half], rows[c][2 * half + 1]};
        }
      }
    }
  }
}

}  // namespace d2ls::cuda
