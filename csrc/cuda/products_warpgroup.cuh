// Products of tiles by wgmma: 64 rows of the result in every warpgroup, 16 in each of its warps.
//
// The same five forms as WarpProducts, for all four warps together; every instruction has 64 columns (or all, if fewer),
// one panel, so that descriptors need no step between panels and d is cut at multiples of 32 registers.
#pragma once

#include "cuda/instructions/wgmma.cuh"
#include "cuda/products_warp.cuh"

namespace d2ls::cuda {

template <class T>
struct WarpgroupProducts {
  // By every thread that wrote a tile which is given as such, before the barrier.
  static D2LS_DEVICE void fence() { fence_for_products(); }

  // `row` is where this warp's rows start: the warpgroup's start at the multiple of 64 below.
  template <int ROWS, int N, int C>
  static D2LS_DEVICE void rows_by_rows(float (&d)[N / 8][4], uint32_t a, int row, uint32_t b, Tile<T, ROWS, C>,
                                       Tile<T, N, C>) {
    const uint64_t left = descriptor(a + row / 64 * 8192), right = descriptor(b);
    hold(d);
    products_begin();
    D2LS_UNROLL
    for (int k = 0; k < C; k += 16) {
      warpgroup_multiply<T>(d, left + step<Tile<T, ROWS, C>>(k), right + step<Tile<T, N, C>>(k));
    }
    products_commit();
    products_wait<0>();
    hold(d);
  }

  // Fragments of A are formed in registers, a panel (four instructions) at a time: the next panel's are loaded while
  // this one's products run.
  template <int ROWS, int N, int C>
  static D2LS_DEVICE void sum_by_rows(float (&d)[N / 8][4], uint32_t x, uint32_t pe, int row, uint32_t b,
                                      Tile<T, ROWS, C>, Tile<T, N, C>) {
    static_assert(N == 64);
    const auto from = left_place(Tile<T, ROWS, C>(), x, row);
    const uint64_t right = descriptor(b);
    uint32_t left[2][4][4];
    hold(d);
    D2LS_UNROLL
    for (int p = 0; p < C / 64; ++p) {
      if (p >= 2) {
        products_wait<1>();  // those that read left[p % 2] before
      }
      D2LS_UNROLL
      for (int k = 0; k < 4; ++k) {
        uint32_t more[4];
        load_matrices(left[p % 2][k], from.at(0, 8 * p + 2 * k));
        load_matrices(more, from.at(0, 8 * p + 2 * k) + (pe - x));
        D2LS_UNROLL
        for (int i = 0; i < 4; ++i) {
          left[p % 2][k][i] = Pair<T>::add(left[p % 2][k][i], more[i]);
        }
      }
      products_begin();
      D2LS_UNROLL
      for (int k = 0; k < 4; ++k) {
        warpgroup_multiply<T, false>(d, left[p % 2][k], right + step<Tile<T, N, C>>(64 * p + 16 * k));
      }
      products_commit();
    }
    products_wait<0>();
    hold(d);
  }

  template <int K, int C>
  static D2LS_DEVICE void result_by_tile(float (&d)[C / 8][4], const float (&w)[K / 8][4], uint32_t b, Tile<T, K, C>) {
    left_by_tile<K, K, C>(d, b, [&](uint32_t(&left)[4], int k) { pack_left<T>(left, w[k / 8], w[k / 8 + 1]); });
  }

  template <int K, int ROWS, int C>
  static D2LS_DEVICE void rows_by_tile(float (&d)[C / 8][4], uint32_t w, int row, uint32_t b, Tile<T, ROWS, K>,
                                       Tile<T, K, C>) {
    const auto from = left_place(Tile<T, ROWS, K>(), w, row);
    left_by_tile<K, K, C>(d, b, [&](uint32_t(&left)[4], int k) { load_matrices(left, from.at(0, k / 8)); });
  }

  template <int K, int COLUMNS, int C>
  static D2LS_DEVICE void columns_by_tile(float (&d)[C / 8][4], uint32_t w, int column, uint32_t b, Tile<T, K, COLUMNS>,
                                          Tile<T, K, C>) {
    const auto from = right_place(Tile<T, K, COLUMNS>(), w);
    left_by_tile<32, K, C>(
        d, b, [&](uint32_t(&left)[4], int k) { load_matrices_transposed(left, from.at(k, column / 8)); });
  }

 private:
  // d += A B; a(left, k) gives columns k to k + 15 of A, of which STEP columns are in registers at a time.
  template <int STEP, int K, int C, class A>
  static D2LS_DEVICE void left_by_tile(float (&d)[C / 8][4], uint32_t b, const A& a) {
    D2LS_UNROLL
    for (int first = 0; first < K; first += STEP) {
      uint32_t left[STEP / 16][4];
      D2LS_UNROLL
      for (int k = 0; k < STEP / 16; ++k) {
        a(left[k], first + 16 * k);
      }
      hold(d);
      products_begin();
      D2LS_UNROLL
      for (int k = 0; k < STEP / 16; ++k) {
        D2LS_UNROLL
        for (int p = 0; p < C / 64; ++p) {
          // 16 rows of 128 bytes further down the panel.
          const uint64_t right = descriptor(b + p * Tile<T, K, C>::panel_bytes) + ((first / 16 + k) * 16 * 128 >> 4);
          warpgroup_multiply<T, true>(d + 8 * p, left[k], right);
        }
      }
      products_commit();
      products_wait<0>();
      hold(d);
    }
  }

  // What is added to the descriptor of a tile to start at column k.
  template <class M>
  static D2LS_DEVICE constexpr uint64_t step(int k) {
    return (k / 64 * M::panel_bytes + k % 64 * 2) >> 4;
  }
};

}  // namespace d2ls::cuda
