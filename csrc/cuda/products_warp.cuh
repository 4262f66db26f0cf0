// Products of tiles by mma.sync: 16 rows of the result in every warp, independent of the other warps.
//
// Results lie as in instructions/mma.cuh: tile n of d[N / 8][4] holds columns 8 n to 8 n + 7. All five forms add to d.
#pragma once

#include "cuda/instructions/mma.cuh"
#include "cuda/tile.cuh"

namespace d2ls::cuda {

// Two tiles of a result as 16 columns of a left factor.
template <class T>
D2LS_DEVICE void pack_left(uint32_t (&left)[4], const float (&first)[4], const float (&second)[4]) {
  left[0] = Pair<T>::pack(first[0], first[1]);
  left[1] = Pair<T>::pack(first[2], first[3]);
  left[2] = Pair<T>::pack(second[0], second[1]);
  left[3] = Pair<T>::pack(second[2], second[3]);
}

// Where a lane finds its row of 16 x 16 numbers of a left factor, and of a right factor that is transposed; the latter is
// also that of a left factor whose rows are the columns of a tile.
template <class M>
D2LS_DEVICE Place<M> left_place(M, uint32_t tile, int row) {
  const int lane = thread_index() % 32;
  return Place<M>(M(), tile, row + lane % 16, lane / 16);
}

template <class M>
D2LS_DEVICE Place<M> right_place(M, uint32_t tile) {
  const int lane = thread_index() % 32;
  return Place<M>(M(), tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// bfloat16 and float16. PASSES is for float32 alone.
template <class T, int PASSES = 1>
struct WarpProducts {
  // ldmatrix sees what ordinary loads see.
  static D2LS_DEVICE void fence() {}

  // Rows of A and columns of B are rows of tiles of C columns: d += A B^T for 16 rows of A from `row`.
  template <int ROWS, int N, int C>
  static D2LS_DEVICE void rows_by_rows(float (&d)[N / 8][4], uint32_t a, int row, uint32_t b, Tile<T, ROWS, C>,
                                       Tile<T, N, C>) {
    const auto from = left_place(Tile<T, ROWS, C>(), a, row);
    const auto right = right_place(Tile<T, N, C>(), b);
    D2LS_UNROLL
    for (int k = 0; k < C; k += 16) {
      uint32_t left[4];
      load_matrices(left, from.at(0, k / 8));
      multiply_step<N>(d, left, right, k / 8);
    }
  }

  // The same with A the sum of two tiles, each sum rounded to T.
  template <int ROWS, int N, int C>
  static D2LS_DEVICE void sum_by_rows(float (&d)[N / 8][4], uint32_t x, uint32_t pe, int row, uint32_t b,
                                      Tile<T, ROWS, C>, Tile<T, N, C>) {
    const auto from = left_place(Tile<T, ROWS, C>(), x, row);
    const auto right = right_place(Tile<T, N, C>(), b);
    D2LS_UNROLL
    for (int k = 0; k < C; k += 16) {
      uint32_t left[4], more[4];
      load_matrices(left, from.at(0, k / 8));
      load_matrices(more, from.at(0, k / 8) + (pe - x));
      D2LS_UNROLL
      for (int i = 0; i < 4; ++i) {
        left[i] = Pair<T>::add(left[i], more[i]);
      }
      multiply_step<N>(d, left, right, k / 8);
    }
  }

  // d += W B with W [16][K] a result, rounded to T, and B a tile of K rows.
  template <int K, int C>
  static D2LS_DEVICE void result_by_tile(float (&d)[C / 8][4], const float (&w)[K / 8][4], uint32_t b, Tile<T, K, C>) {
    const auto right = place_down(Tile<T, K, C>(), b);
    D2LS_UNROLL
    for (int k = 0; k < K; k += 16) {
      uint32_t left[4];
      pack_left<T>(left, w[k / 8], w[k / 8 + 1]);
      multiply_down<C>(d, left, right, k);
    }
  }

  // d += W B for 16 rows of W from `row`; W is a tile of K columns, B one of K rows.
  template <int K, int ROWS, int C>
  static D2LS_DEVICE void rows_by_tile(float (&d)[C / 8][4], uint32_t w, int row, uint32_t b, Tile<T, ROWS, K>,
                                       Tile<T, K, C>) {
    const auto from = left_place(Tile<T, ROWS, K>(), w, row);
    const auto right = place_down(Tile<T, K, C>(), b);
    D2LS_NO_UNROLL  // as in columns_by_tile
    for (int k = 0; k < K; k += 16) {
      uint32_t left[4];
      load_matrices(left, from.at(0, k / 8));
      multiply_down<C>(d, left, right, k);
    }
  }

  // d += W^T B for 16 columns of W from `column`; W and B are tiles of K rows.
  template <int K, int COLUMNS, int C>
  static D2LS_DEVICE void columns_by_tile(float (&d)[C / 8][4], uint32_t w, int column, uint32_t b, Tile<T, K, COLUMNS>,
                                          Tile<T, K, C>) {
    const auto from = right_place(Tile<T, K, COLUMNS>(), w);
    const auto right = place_down(Tile<T, K, C>(), b);
    D2LS_NO_UNROLL  // d is held over many calls: few registers are left
    for (int k = 0; k < K; k += 16) {
      uint32_t left[4];
      load_matrices_transposed(left, from.at(k, column / 8));
      multiply_down<C>(d, left, right, k);
    }
  }

 private:
  template <class M>
  static D2LS_DEVICE Place<M> place_down(M, uint32_t tile) {
    return Place<M>(M(), tile, thread_index() % 32 % 16, thread_index() % 32 / 16);
  }

  // The step that multiplies with rows k to k + 15 of B.
  template <int C, class M>
  static D2LS_DEVICE void multiply_down(float (&d)[C / 8][4], const uint32_t (&left)[4], const Place<M>& b, int k) {
    D2LS_UNROLL
    for (int n = 0; n < C; n += 16) {
      uint32_t right[4];
      load_matrices_transposed(right, b.at(k, n / 8));
      multiply<T>(d[n / 8], left, right[0], right[1]);
      multiply<T>(d[n / 8 + 1], left, right[2], right[3]);
    }
  }

  template <int N, class M>
  static D2LS_DEVICE void multiply_step(float (&d)[N / 8][4], const uint32_t (&left)[4], const Place<M>& b, int word) {
    D2LS_UNROLL
    for (int n = 0; n < N; n += 16) {
      uint32_t right[4];
      load_matrices(right, b.at(n, word));
      multiply<T>(d[n / 8], left, right[0], right[1]);
      multiply<T>(d[n / 8 + 1], left, right[2], right[3]);
    }
  }
};

}  // namespace d2ls::cuda
