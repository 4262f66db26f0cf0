// 16 pixels of a warp in registers, as the rows of a product: LayerNorm, and their way out.
#pragma once

#include "cuda/products.cuh"

namespace d2ls::cuda {

// Weight and bias of the norm in shared memory, zero beyond the channels: in turns, two of each, so that a lane reads what
// it needs of a tile at once.
template <int C>
struct Norm {
  static constexpr uint32_t bytes = 2 * C * sizeof(float);
  uint32_t offset;

  D2LS_DEVICE void load(const float* weight, const float* bias, int channels, int threads) const {
    for (int i = thread_index(); i < C; i += threads) {
      const uint32_t to = offset + 4 * (i / 2 * 4 + i % 2);
      store_shared(to, i < channels ? weight[i] : 0.0f);
      store_shared(to + 8, i < channels ? bias[i] : 0.0f);
    }
  }
  // Of this lane's two columns of tile c: two weights, two biases.
  D2LS_DEVICE Four at(int c) const { return load_shared<Four>(offset + 64 * c + 16 * (thread_index() % 4)); }
};

// Where this lane's pairs of the 16 rows from `row` on lie in a tile.
template <class M>
D2LS_DEVICE Place<M> pairs(M, uint32_t tile, int row) {
  const int g = thread_index() % 32 / 4, column = thread_index() % 4 * 2;
  return Place<M>(M(), tile, row + g, column / M::per_word,
                  column % M::per_word * static_cast<int>(sizeof(typename M::Number)));
}

// 16 rows of a product to rows `row` on of a tile in shared memory, rounded.
template <class M, int TILES>
D2LS_DEVICE void store_in_tile(const float (&rows)[TILES][4], uint32_t tile, int row, M) {
  const auto to = pairs(M(), tile, row);
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Two two{rows[n][2 * half], rows[n][2 * half + 1]};
      store_two<typename M::Number>(to.at(8 * half, 8 * n / M::per_word), two);
    }
  }
}

// What store_in_tile stored.
template <class M, int TILES>
D2LS_DEVICE void load_from_tile(float (&rows)[TILES][4], uint32_t tile, int row, M) {
  const auto from = pairs(M(), tile, row);
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Two two = load_two<typename M::Number>(from.at(8 * half, 8 * n / M::per_word));
      rows[n][2 * half] = two.first;
      rows[n][2 * half + 1] = two.second;
    }
  }
}

// rows = x + out_bias, the rows of tile `x` from `row` on; bias(c) gives this lane's two of tile c.
template <class M, int TILES, class Bias>
D2LS_DEVICE void residual(float (&rows)[TILES][4], uint32_t x, int row, const Bias& bias, M) {
  const auto from = pairs(M(), x, row);
  D2LS_UNROLL
  for (int c = 0; c < TILES; ++c) {
    const Two added = bias(c);
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Two value = load_two<typename M::Number>(from.at(8 * half, 8 * c / M::per_word));
      rows[c][2 * half] = value.first + added.first;
      rows[c][2 * half + 1] = value.second + added.second;
    }
  }
}

// LayerNorm over the channels, with the mean subtracted before squares are summed.
template <int C>
D2LS_DEVICE void normalise(float (&rows)[C / 8][4], const Norm<C>& norm, int channels, float eps) {
  channels = from_here(channels);  // or C / 8 comparisons are made before the loop over pixels, and kept
  float scale[2];
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    float sum = 0, squares = 0;
    D2LS_UNROLL
    for (int c = 0; c < C / 8; ++c) {
      sum += rows[c][2 * half] + rows[c][2 * half + 1];  // zeros beyond the channels
    }
    const float mean = quad_sum(sum) / channels;
    D2LS_UNROLL
    for (int c = 0; c < C / 8; ++c) {
      float* two = rows[c] + 2 * half;
      two[0] -= mean;
      two[1] -= mean;
      squares += 8 * c < channels ? two[0] * two[0] + two[1] * two[1] : 0.0f;
    }
    scale[half] = inverse_root(quad_sum(squares) / channels + eps);
  }
  D2LS_UNROLL
  for (int c = 0; c < C / 8; ++c) {
    const Four vectors = norm.at(c);
    D2LS_UNROLL
    for (int i = 0; i < 4; ++i) {
      rows[c][i] = rows[c][i] * scale[i / 2] * vectors.value[i % 2] + vectors.value[2 + i % 2];
    }
  }
}

// Writes the 16 rows to rows `row` on of a matrix of `channels` columns, those below `end`, from column `first` on.
template <class T, int TILES>
D2LS_DEVICE void store_rows(const float (&rows)[TILES][4], T* to, int row, int end, int channels, int first = 0) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  channels = from_here(channels);
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int mine = row + g + 8 * half;
    T* line = to + static_cast<int64_t>(mine) * channels + first;
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
        if (mine < end && first + 8 * (c + t) < channels) {
          *reinterpret_cast<Words*>(line + 8 * (c + t)) = {words[0], words[1], words[2], words[3]};
        }
      }
    } else {
      D2LS_UNROLL
      for (int c = 0; c < TILES; ++c) {
        if (mine < end && first + 8 * c < channels) {
          *reinterpret_cast<Two*>(line + 8 * c + 2 * t) = {rows[c][2 * half], rows[c][2 * half + 1]};
        }
      }
    }
  }
}

// rows += what store_rows would write there.
template <class T, int TILES>
D2LS_DEVICE void add_rows(float (&rows)[TILES][4], const T* from, int row, int end, int channels, int first = 0) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  channels = from_here(channels);
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int mine = row + g + 8 * half;
    const T* line = from + static_cast<int64_t>(mine) * channels + first;
    if constexpr (sizeof(T) == 2) {
      D2LS_UNROLL
      for (int c = 0; c < TILES; c += 4) {
        const bool there = mine < end && first + 8 * (c + t) < channels;
        Words got = there ? *reinterpret_cast<const Words*>(line + 8 * (c + t)) : Words{0, 0, 0, 0};
        quad_transpose(got.word);
        D2LS_UNROLL
        for (int i = 0; i < 4; ++i) {
          rows[c + i][2 * half] += Pair<T>::first(got.word[i]);
          rows[c + i][2 * half + 1] += Pair<T>::second(got.word[i]);
        }
      }
    } else {
      D2LS_UNROLL
      for (int c = 0; c < TILES; ++c) {
        if (mine < end && first + 8 * c < channels) {
          const Two got = *reinterpret_cast<const Two*>(line + 8 * c + 2 * t);
          rows[c][2 * half] += got.first;
          rows[c][2 * half + 1] += got.second;
        }
      }
    }
  }
}

// The way of a gradient through the encoding: 16 rows of float32, added to what is there or not.
template <int TILES>
D2LS_DEVICE void store_encoding_gradient(const float (&rows)[TILES][4], float* to, bool add, int row, int end,
                                         int channels, int first) {
  float sum[TILES][4];
  D2LS_UNROLL
  for (int i = 0; i < 4 * TILES; ++i) {
    sum[i / 4][i % 4] = rows[i / 4][i % 4];
  }
  if (add) {
    add_rows(sum, to, row, end, channels, first);
  }
  store_rows(sum, to, row, end, channels, first);
}

}  // namespace d2ls::cuda
