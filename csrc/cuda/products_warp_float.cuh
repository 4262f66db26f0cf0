// Products of float32 tiles by mma.sync, as TF32: the five forms of WarpProducts, without ldmatrix.
//
// One product (PASSES = 1), or three that keep float32's precision: with v = high + low,
// a b = a_low b_high + a_high b_low + a_high b_high up to 2^-22 of it.
#pragma once

#include "cuda/products_warp.cuh"

namespace d2ls::cuda {

template <int PASSES>
struct WarpProducts<float, PASSES> {
  static D2LS_DEVICE void fence() {}

  template <int ROWS, int N, int C>
  static D2LS_DEVICE void rows_by_rows(float (&d)[N / 8][4], uint32_t a, int row, uint32_t b, Tile<float, ROWS, C>,
                                       Tile<float, N, C>) {
    const auto from = place(Tile<float, ROWS, C>(), a, row);
    left_by_rows<N, C>(d, b, [&](int r, int word) { return load_shared<float>(from.at(r, word)); });
  }

  template <int ROWS, int N, int C>
  static D2LS_DEVICE void sum_by_rows(float (&d)[N / 8][4], uint32_t x, uint32_t pe, int row, uint32_t b,
                                      Tile<float, ROWS, C>, Tile<float, N, C>) {
    const auto from = place(Tile<float, ROWS, C>(), x, row);
    left_by_rows<N, C>(d, b, [&](int r, int word) {
      return load_shared<float>(from.at(r, word)) + load_shared<float>(from.at(r, word) + (pe - x));
    });
  }

  // The sum over k may run in any order: column t of the left factor is 2 t of the result, column t + 4 is 2 t + 1.
  template <int K, int C>
  static D2LS_DEVICE void result_by_tile(float (&d)[C / 8][4], const float (&w)[K / 8][4], uint32_t b,
                                         Tile<float, K, C>) {
    left_by_tile<K, C>(d, b, [&](int k) {
      const float(&step)[4] = w[k / 8];
      return Left({step[0], step[2], step[1], step[3]});
    });
  }

  template <int K, int ROWS, int C>
  static D2LS_DEVICE void rows_by_tile(float (&d)[C / 8][4], uint32_t w, int row, uint32_t b, Tile<float, ROWS, K>,
                                       Tile<float, K, C>) {
    const int lane = thread_index() % 32;
    const Place from(Tile<float, ROWS, K>(), w, row + lane / 4, lane % 4 / 2, lane % 2 * 8);
    left_by_tile<K, C>(d, b, [&](int k) {
      const Two upper = load_shared<Two>(from.at(0, k / 4)), lower = load_shared<Two>(from.at(8, k / 4));
      return Left({upper.first, lower.first, upper.second, lower.second});
    });
  }

  template <int K, int COLUMNS, int C>
  static D2LS_DEVICE void columns_by_tile(float (&d)[C / 8][4], uint32_t w, int column, uint32_t b,
                                          Tile<float, K, COLUMNS>, Tile<float, K, C>) {
    const auto even = place_down<0>(Tile<float, K, COLUMNS>(), w), odd = place_down<1>(Tile<float, K, COLUMNS>(), w);
    const int word = column / 4;
    left_by_tile<K, C>(d, b, [&](int k) {
      return Left({load_shared<float>(even.at(k, word)), load_shared<float>(even.at(k, word + 2)),
                   load_shared<float>(odd.at(k, word)), load_shared<float>(odd.at(k, word + 2))});
    });
  }

 private:
  // Where a lane finds (row + g, t) of a tile, and (2 t + ODD, g).
  template <class M>
  static D2LS_DEVICE Place<M> place(M, uint32_t tile, int row) {
    return Place<M>(M(), tile, row + thread_index() % 32 / 4, 0, thread_index() % 4 * 4);
  }
  template <int ODD, class M>
  static D2LS_DEVICE Place<M> place_down(M, uint32_t tile) {
    const int g = thread_index() % 32 / 4;
    return Place<M>(M(), tile, thread_index() % 4 * 2 + ODD, g / 4, g % 4 * 4);
  }

  struct Left {
    uint32_t high[4], low[4];

    D2LS_DEVICE explicit Left(const Four& a) {
      D2LS_UNROLL
      for (int i = 0; i < 4; ++i) {
        high[i] = tf32(a.value[i]);
        low[i] = tf32(a.value[i] - word_as_float(high[i]));
      }
    }

    D2LS_DEVICE void multiply(float (&d)[4], float b0, float b1) const {
      const uint32_t high0 = tf32(b0), high1 = tf32(b1);
      if constexpr (PASSES == 3) {
        multiply_tf32(d, low, high0, high1);
        multiply_tf32(d, high, tf32(b0 - word_as_float(high0)), tf32(b1 - word_as_float(high1)));
      }
      multiply_tf32(d, high, high0, high1);
    }
  };

  template <int K, int C, class A>
  static D2LS_DEVICE void left_by_tile(float (&d)[C / 8][4], uint32_t b, const A& a) {
    const auto even = place_down<0>(Tile<float, K, C>(), b), odd = place_down<1>(Tile<float, K, C>(), b);
    D2LS_UNROLL
    for (int k = 0; k < K; k += 8) {
      const Left left = a(k);
      D2LS_UNROLL
      for (int n = 0; n < C; n += 8) {
        left.multiply(d[n / 8], load_shared<float>(even.at(k, n / 4)), load_shared<float>(odd.at(k, n / 4)));
      }
    }
  }

  template <int N, int C, class A>
  static D2LS_DEVICE void left_by_rows(float (&d)[N / 8][4], uint32_t b, const A& a) {
    const auto right = place(Tile<float, N, C>(), b, 0);
    D2LS_NO_UNROLL
    for (int panel = 0; panel < C / 4; panel += 8) {
      D2LS_UNROLL
      for (int k = 0; k < 8; k += 2) {
        const Left left({a(0, panel + k), a(8, panel + k), a(0, panel + k + 1), a(8, panel + k + 1)});
        D2LS_UNROLL
        for (int n = 0; n < N; n += 8) {
          left.multiply(d[n / 8], load_shared<float>(right.at(n, panel + k)),
                        load_shared<float>(right.at(n, panel + k + 1)));
        }
      }
    }
  }
};

}  // namespace d2ls::cuda
