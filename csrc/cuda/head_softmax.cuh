// The softmax within heads of 16 rows of scores in a warp: columns are places for the entries of heads.
#pragma once

#include "cuda/products.cuh"

namespace d2ls::cuda {

// Entries of a head lie in places padded to the next of 8, 16, 32 and 64, so that a head is whole tiles of a product and
// 64 rows of key and value are whole heads.
struct Entries {
  int heads, entries;

  D2LS_DEVICE int tiles() const { return entries <= 8 ? 1 : entries <= 16 ? 2 : entries <= 32 ? 4 : 8; }

  // Row of key and value in place `place`, -1 if the place is empty.
  D2LS_DEVICE int row(int place) const {
    const int padded = 8 * tiles(), head = place / padded, entry = place % padded;
    return head < heads && entry < entries ? head * entries + entry : -1;
  }

  // What is added to the score: -infinity in an empty place of a head; 0 beyond the heads, where values are 0.
  D2LS_DEVICE float bias(const float* key_bias, int place) const {
    const int found = row(place);
    return found >= 0 ? key_bias[found] : place / (8 * tiles()) < heads ? -infinity() : 0.0f;
  }
};

// TILES tiles of scores, TILES_OF_HEAD to a head.
template <int TILES_OF_HEAD, int TILES>
D2LS_DEVICE void softmax_of_heads(float (&scores)[TILES][4]) {
  D2LS_UNROLL
  for (int i = 0; i < 2 * TILES / TILES_OF_HEAD; ++i) {
    const int head = i / 2 * TILES_OF_HEAD, half = i % 2 * 2;
    float highest = -infinity(), sum = 0;
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      highest = fmaxf(highest, fmaxf(scores[n][half], scores[n][half + 1]));
    }
    highest = quad_max(highest);
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      scores[n][half] = power_of_two((scores[n][half] - highest) * log2_e);
      scores[n][half + 1] = power_of_two((scores[n][half + 1] - highest) * log2_e);
      sum += scores[n][half] + scores[n][half + 1];
    }
    const float scale = 1.0f / quad_sum(sum);
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      scores[n][half] *= scale;
      scores[n][half + 1] *= scale;
    }
  }
}

// Scores of the places from `first` on become weights.
template <int TILES>
D2LS_DEVICE void head_softmax(float (&scores)[TILES][4], const Entries& entries, const float* key_bias, int first) {
  const int t = thread_index() % 4;
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    D2LS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float bias = entries.bias(key_bias, first + 8 * n + 2 * t + i);
      scores[n][i] += bias;
      scores[n][i + 2] += bias;
    }
  }
  // The group a score belongs to must be known to the compiler: registers have no index.
  switch (entries.tiles()) {
    case 1:
      return softmax_of_heads<1>(scores);
    case 2:
      return softmax_of_heads<2>(scores);
    case 4:
      return softmax_of_heads<4>(scores);
    default:
      return softmax_of_heads<TILES>(scores);
  }
}

}  // namespace d2ls::cuda
