// Products of one row with many vectors by a warp, exact float32: the row is read once, in whole lines.
#pragma once

#include "cuda/tile.cuh"

namespace d2ls::cuda {

D2LS_DEVICE Four load_four(const float* from) { return *reinterpret_cast<const Four*>(from); }

D2LS_DEVICE Four sum_of(const Four& a, const Four& b) {
  return {a.value[0] + b.value[0], a.value[1] + b.value[1], a.value[2] + b.value[2], a.value[3] + b.value[3]};
}

D2LS_DEVICE float dot(const Four& a, const Four& b) {
  return a.value[0] * b.value[0] + a.value[1] * b.value[1] + a.value[2] * b.value[2] + a.value[3] * b.value[3];
}

// This lane's share of a vector of up to 256 numbers, a multiple of four: quads `lane` and `lane + 32`.
struct Share {
  Four four[2];

  // from(quad) gives a quad; zeros beyond the end.
  template <class From>
  static D2LS_DEVICE Share of(int length, const From& from) {
    Share share{};
    D2LS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int quad = thread_index() % 32 + 32 * i;
      if (4 * quad < length) {
        share.four[i] = from(quad);
      }
    }
    return share;
  }

  // The same in all lanes.
  D2LS_DEVICE float times(const Share& other) const {
    return warp_sum(dot(four[0], other.four[0]) + dot(four[1], other.four[1]));
  }
};

}  // namespace d2ls::cuda
