// The softmax within heads of 16 rows of scores in a warp: columns are places for the entries of heads.
#pragma once

#include "cuda/products.cuh"

namespace d2ls::cuda {

// Entries of a head lie in places padded to the next of 8, 16, 32 and 64, so that a head is whole tiles of a product and
// 64 rows of key and value are whole heads.
struct Entries {
  int heads, entries;

  // Of the places of a head.
  D2LS_EITHER int log2() const { return entries <= 8 ? 3 : entries <= 16 ? 4 : entries <= 32 ? 5 : 6; }

  // How many blocks of `rows` places they fill.
  D2LS_EITHER int blocks(int rows) const { return ((heads << log2()) + rows - 1) / rows; }

  // Row of key and value in place `place`, -1 if the place is empty.
  D2LS_DEVICE int row(int place) const {
    const int head = place >> log2(), entry = place - (head << log2());
    return head < heads && entry < entries ? head * entries + entry : -1;
  }

  // What is added to the score: -infinity in an empty place of a head; 0 beyond the heads, where values are 0.
  D2LS_DEVICE float bias(const float* key_bias, int place) const {
    const int found = row(place);
    return found >= 0 ? key_bias[found] : place >> log2() < heads ? -infinity() : 0.0f;
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
    const float scale = inverse(quad_sum(sum));
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      scores[n][half] *= scale;
      scores[n][half + 1] *= scale;
    }
  }
}

// Gradients of those weights become gradients of the scores.
template <int TILES_OF_HEAD, int TILES>
D2LS_DEVICE void undo_softmax_of_heads(const float (&weights)[TILES][4], float (&grads)[TILES][4]) {
  D2LS_UNROLL
  for (int i = 0; i < 2 * TILES / TILES_OF_HEAD; ++i) {
    const int head = i / 2 * TILES_OF_HEAD, half = i % 2 * 2;
    float mean = 0;
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      mean += weights[n][half] * grads[n][half] + weights[n][half + 1] * grads[n][half + 1];
    }
    mean = quad_sum(mean);
    D2LS_UNROLL
    for (int n = head; n < head + TILES_OF_HEAD; ++n) {
      grads[n][half] = weights[n][half] * (grads[n][half] - mean);
      grads[n][half + 1] = weights[n][half + 1] * (grads[n][half + 1] - mean);
    }
  }
}

// Scores of a block of places become weights; `bias` is where shared memory has what is added to each.
template <int TILES>
D2LS_DEVICE void head_softmax(float (&scores)[TILES][4], const Entries& entries, uint32_t bias) {
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    const Two added = load_shared<Two>(bias + 32 * n + 8 * (thread_index() % 4));
    scores[n][0] += added.first;
    scores[n][1] += added.second;
    scores[n][2] += added.first;
    scores[n][3] += added.second;
  }
  // The group a score belongs to must be known to the compiler: registers have no index.
  switch (entries.log2()) {
    case 3:
      return softmax_of_heads<1>(scores);
    case 4:
      return softmax_of_heads<2>(scores);
    case 5:
      return softmax_of_heads<4>(scores);
    default:
      return softmax_of_heads<TILES>(scores);
  }
}

template <int TILES>
D2LS_DEVICE void undo_head_softmax(const float (&weights)[TILES][4], float (&grads)[TILES][4], const Entries& entries) {
  switch (entries.log2()) {
    case 3:
      return undo_softmax_of_heads<1>(weights, grads);
    case 4:
      return undo_softmax_of_heads<2>(weights, grads);
    case 5:
      return undo_softmax_of_heads<4>(weights, grads);
    default:
      return undo_softmax_of_heads<TILES>(weights, grads);
  }
}

}  // namespace d2ls::cuda
