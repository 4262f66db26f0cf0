// The kernel of nce_sums: what a block's pixels add to the sums by class, and to the denominators over the pixels.
#pragma once

#include "cuda/nce_scores.cuh"

namespace d2ls::cuda {

// A warp's sums in shared memory: by label, loss, positive and count, four lanes each; by entry, a denominator over the
// pixels, four lanes each.
class NceWarpSums {
 public:
  D2LS_DEVICE NceWarpSums(const NceArguments& a, int warp)
      : classes_(a.of.classes), offset_(warp * bytes(a.of.classes, a.entries())) {}

  static D2LS_EITHER uint32_t bytes(int classes, int entries) {
    return 48 * (classes + 1) + (entries + nce_group - 1) / nce_group * 256;
  }

  D2LS_DEVICE void clear(int entries) const {
    const int lane = thread_index() % 32;
    for (int i = lane; i < 12 * (classes_ + 1); i += 32) {
      store_shared(offset_ + 4 * i, 0.0f);
    }
    for (int first = 0; first < entries; first += nce_group) {
      store_shared(denominators(first) + 8 * lane, Two{-infinity(), 0});
    }
  }

  // By the lanes below four, which own what they add to.
  D2LS_DEVICE void add(int label, float loss, float positive) const {
    const float values[3] = {loss, positive, 1};
    D2LS_UNROLL
    for (int which = 0; which < 3; ++which) {
      const uint32_t to = at(which, label) + 4 * (thread_index() % 4);
      store_shared(to, load_shared<float>(to) + values[which]);
    }
  }

  // The score of entry first + lane / 4.
  D2LS_DEVICE void add(int first, float score) const {
    const uint32_t to = denominators(first) + 8 * (thread_index() % 32);
    const Two old = load_shared<Two>(to);
    Denominator all{old.first, old.second};
    all.add({score, 1});
    store_shared(to, Two{all.top, all.sum});
  }

  // Loss, positive or count (0, 1, 2) of a label.
  D2LS_DEVICE float sum(int which, int label) const {
    const Four four = load_shared<Four>(at(which, label));
    return (four.value[0] + four.value[1]) + (four.value[2] + four.value[3]);
  }

  D2LS_DEVICE Denominator denominator(int entry) const {
    Denominator all;
    for (int t = 0; t < 4; ++t) {
      const Two one = load_shared<Two>(denominators(entry) + 8 * (entry % nce_group * 4 + t));
      all.add({one.first, one.second});
    }
    return all;
  }

 private:
  D2LS_DEVICE uint32_t at(int which, int label) const { return offset_ + 16 * (which * (classes_ + 1) + label); }
  D2LS_DEVICE uint32_t denominators(int entry) const {
    return offset_ + 48 * (classes_ + 1) + entry / nce_group * 256;
  }

  int classes_;
  uint32_t offset_;
};

// Of a block: loss and positive [classes], count [classes + 1], tops and sums [entries].
D2LS_EITHER int nce_part(const NceCall& call) { return 3 * call.classes + 1 + 2 * call.classes * call.prototypes; }

template <class T>
D2LS_KERNEL(nce_threads, nce_blocks_an_sm) nce_sums_kernel(NceArguments a) {
  const int image = static_cast<int>(block_index()) / a.blocks_per_image, entries = a.entries();
  const int lane = thread_index() % 32, warp = thread_index() / 32, k = a.of.classes;
  const NceWarpSums sums(a, warp);
  sums.clear(entries);
  warp_barrier();
  const float* rows = a.of.entries + static_cast<int64_t>(image) * entries * a.of.channels;
  const int stride = a.blocks_per_image * nce_pixels;
  const int start = (static_cast<int>(block_index()) % a.blocks_per_image * nce_warps + warp) * nce_warp_pixels;
  for (int first = start; first < a.of.pixels; first += stride) {
    const UnitPixels pixels(a, image, first, T());
    const int label = nce_label(a, image, first);
    const bool labelled = label >= 0 && label < k;
    Denominator all, own;
    D2LS_NO_UNROLL
    for (int group = 0; group < entries; group += nce_group) {
      const float score = pixels.scores(rows, group, entries, a.of.channels);
      const int entry = group + lane / 4;
      if (entry < entries) {
        all.add({score, 1});
        if (entry / a.of.prototypes == label) {
          own.add({score, 1});
        }
        if (labelled && a.of.columns) {
          sums.add(group, score);
        }
      }
    }
    const float of_all = add_over_entries(all).log(), of_own = add_over_entries(own).log();
    if (lane < 4 && label >= 0) {
      sums.add(label, labelled && a.of.rows ? of_all - of_own : 0.0f, labelled && a.of.columns ? of_own : 0.0f);
    }
  }
  block_barrier();
  float* part = a.parts + block_index() * nce_part(a.of);
  for (int i = thread_index(); i < 3 * k + 1; i += nce_threads) {
    float sum = 0;
    for (int w = 0; w < nce_warps; ++w) {
      sum += NceWarpSums(a, w).sum(i < 2 * k ? i / k : 2, i < 2 * k ? i % k : i - 2 * k);
    }
    part[i] = sum;
  }
  for (int entry = thread_index(); entry < entries; entry += nce_threads) {
    Denominator all;
    for (int w = 0; w < nce_warps; ++w) {
      all.add(NceWarpSums(a, w).denominator(entry));
    }
    part[3 * k + 1 + entry] = all.top;
    part[3 * k + 1 + entries + entry] = all.sum;
  }
}

}  // namespace d2ls::cuda
