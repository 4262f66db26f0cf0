// The backward of residual and LayerNorm for 16 pixels of a warp: from the gradient of x' to that of u, in shared memory.
#pragma once

#include "cuda/pixel_rows.cuh"

namespace d2ls::cuda {

// Eight values of every lane, summed over the eight lanes of a column of a product: lane g of them gets value g's sum.
D2LS_DEVICE float column_sum(float (&values)[8]) {
  D2LS_UNROLL
  for (int half = 4; half >= 1; half /= 2) {
    const bool upper = thread_index() & 4 * half;
    D2LS_UNROLL
    for (int i = 0; i < half; ++i) {
      const float given = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + shuffle_xor(given, 4 * half);
    }
  }
  return values[0];
}

// The column of which column_sum gives this lane the sum, where values are two columns each of four tiles from `tile` on.
D2LS_DEVICE int column_of_sum(int tile) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  return 8 * (tile + g / 2) + 2 * t + g % 2;
}

// Mean and squared deviations of the rows of u, slice by slice of the channels, put together as Chan, Golub and LeVeque
// do: of what is in registers, before the next slice takes its place.
struct Statistics {
  float mean[2] = {0, 0}, squares[2] = {0, 0};

  // The slice begins at column `first`; columns beyond `channels` are zero, and do not count.
  template <int TILES>
  D2LS_DEVICE void add(const float (&rows)[TILES][4], int first, int channels) {
    const int count = smaller(8 * TILES, from_here(channels) - first);
    if (count <= 0) {
      return;
    }
    const float share = inverse(static_cast<float>(count)), weight = count * inverse(static_cast<float>(first + count));
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      float sum = 0, own = 0;
      D2LS_UNROLL
      for (int c = 0; c < TILES; ++c) {
        sum += rows[c][2 * half] + rows[c][2 * half + 1];
      }
      const float centre = quad_sum(sum) * share;
      D2LS_UNROLL
      for (int c = 0; c < TILES; ++c) {
        const float left = rows[c][2 * half] - centre, right = rows[c][2 * half + 1] - centre;
        own += 8 * c < count ? left * left + right * right : 0.0f;
      }
      const float further = centre - mean[half];
      squares[half] += quad_sum(own) + further * further * weight * first;
      mean[half] += further * weight;
    }
  }
};

// Sums over tiles, COUNT of every thread, in shared memory: registers are short, and a sum changes once a tile.
template <int COUNT, int THREADS>
struct SharedSums {
  static constexpr uint32_t bytes = COUNT * THREADS * sizeof(float);
  uint32_t offset;

  D2LS_DEVICE uint32_t at(int which) const { return offset + 4 * (which * THREADS + thread_index()); }
  D2LS_DEVICE void clear() const {
    D2LS_UNROLL
    for (int i = 0; i < COUNT; ++i) {
      store_shared(at(i), 0.0f);
    }
  }
  D2LS_DEVICE void add(int which, float value) const { store_shared(at(which), load_shared<float>(at(which)) + value); }
  D2LS_DEVICE float get(int which) const { return load_shared<float>(at(which)); }
};

// Rows `row` to row + 15 of tile `grad`, the gradient of x', become that of u, which tile `u` has. `norm_weight`: where
// shared memory has it. Of the gradients of the norm's bias and weight, this lane has in `sums` the columns
// column_of_sum(0), column_of_sum(4) ..
template <int C, class M, class Sums>
D2LS_DEVICE void undo_norm(uint32_t u, const Statistics& statistics, uint32_t grad, int row, uint32_t norm_weight,
                           int channels, float eps, const Sums& sums, M) {
  using T = typename M::Number;
  const float share = inverse(static_cast<float>(from_here(channels)));
  float scale[2], shift[2];  // normalised u = u * scale + shift
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    scale[half] = inverse_root(statistics.squares[half] * share + eps);
    shift[half] = -statistics.mean[half] * scale[half];
  }
  const auto at = pairs(M(), grad, row), u_at = pairs(M(), u, row);
  const auto weight_at = [&](int c) { return load_shared<Two>(norm_weight + 32 * c + 8 * (thread_index() % 4)); };
  float mean[2] = {0, 0}, slope[2] = {0, 0};
  D2LS_UNROLL
  for (int tile = 0; tile < C / 8; tile += 4) {
    float values[8], products[8];
    D2LS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int c = tile + i;
      const Two weight = weight_at(c);
      D2LS_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Two g = load_two<T>(at.at(8 * half, 8 * c / M::per_word));
        const Two own = load_two<T>(u_at.at(8 * half, 8 * c / M::per_word));
        const float first = g.first * (own.first * scale[half] + shift[half]);
        const float second = g.second * (own.second * scale[half] + shift[half]);
        values[2 * i] = half == 0 ? g.first : values[2 * i] + g.first;
        values[2 * i + 1] = half == 0 ? g.second : values[2 * i + 1] + g.second;
        products[2 * i] = half == 0 ? first : products[2 * i] + first;
        products[2 * i + 1] = half == 0 ? second : products[2 * i + 1] + second;
        mean[half] += g.first * weight.first + g.second * weight.second;
        slope[half] += first * weight.first + second * weight.second;
      }
    }
    sums.add(tile / 4, column_sum(values));
    sums.add(C / 32 + tile / 4, column_sum(products));
    warp_barrier();  // or the compiler begins with the next, and has no registers left
  }
  // du = scale (g weight - mean - slope (u scale + shift)) = scale g weight - offset - factor u
  float offset[2], factor[2];
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    slope[half] = quad_sum(slope[half]) * share;
    offset[half] = scale[half] * (quad_sum(mean[half]) * share + slope[half] * shift[half]);
    factor[half] = scale[half] * scale[half] * slope[half];
  }
  channels = from_here(channels);
  D2LS_UNROLL
  for (int c = 0; c < C / 8; ++c) {
    const Two weight = weight_at(c);
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = at.at(8 * half, 8 * c / M::per_word);
      const Two g = load_two<T>(word), own = load_two<T>(u_at.at(8 * half, 8 * c / M::per_word));
      const Two du{scale[half] * g.first * weight.first - offset[half] - factor[half] * own.first,
                   scale[half] * g.second * weight.second - offset[half] - factor[half] * own.second};
      store_two<T>(word, 8 * c < channels ? du : Two{0, 0});
    }
  }
}

// The sums of undo_norm as row `part` of matrices of `channels` columns.
template <int C, class Sums>
D2LS_DEVICE void store_norm_gradient(const Sums& sums, float* weight, float* bias, int64_t part, int channels) {
  D2LS_UNROLL
  for (int c = 0; c < C / 8; c += 4) {
    const int column = column_of_sum(c);
    if (column < channels) {
      bias[part * channels + column] = sums.get(c / 4);
      weight[part * channels + column] = sums.get(C / 32 + c / 4);
    }
  }
}

}  // namespace d2ls::cuda
