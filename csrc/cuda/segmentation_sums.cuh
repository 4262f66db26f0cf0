// The kernel of segmentation_sums, forward: a block's sums over its sub-pixels, logits and probabilities only on chip.
//
// One thread a sub-pixel, as in classify. Logits are computed twice, for the softmax's denominator and for its terms:
// that takes a twentieth of the time of the activations, and keeps any number of classes. Every eight classes a warp's
// lanes exchange their probabilities through shared memory, and four lanes sum each class.
#pragma once

#include "cuda/segmentation_labels.cuh"

namespace d2ls::cuda {

constexpr int sums_threads = 128, sums_warps = sums_threads / 32, sums_pixels = sums_threads / 16;
constexpr int sums_blocks_an_sm = 8;

struct SegmentationArguments {
  ClassifyArguments of;
  LabelArguments labels;
  float* parts;  // a row a block: cross_entropy, wrong, overlap, volume, count
};

// A warp's sums by class, in shared memory.
class ClassSums {
 public:
  D2LS_DEVICE ClassSums(uint32_t offset, int classes, int warp)
      : classes_(classes), labels_(offset + warp * warp_bytes(classes)) {}

  static D2LS_EITHER uint32_t bytes(int classes, int warps) { return warps * warp_bytes(classes); }

  D2LS_DEVICE void clear() const {
    for (uint32_t i = 4 * lane(); i < warp_bytes(classes_) - (sums() - labels_); i += 128) {
      store_shared(sums() + i, 0.0f);
    }
  }

  // Adds probability(k) of every class for lanes with a label.
  template <class Probability>
  D2LS_DEVICE void add(int label, const Probability& probability) const {
    store_shared(labels_ + 4 * lane(), label);
    D2LS_NO_UNROLL
    for (int first = 0; first < classes_; first += group) {
      D2LS_NO_UNROLL
      for (int j = 0; j < smaller(group, classes_ - first); ++j) {
        const float p = probability(first + j);
        store_shared(probabilities() + j * row_bytes + 4 * lane(), label >= 0 ? p : 0.0f);
      }
      warp_barrier();
      sum_group(first);
      warp_barrier();
    }
  }

  // The warp's overlap, volume or count (0, 1, 2) of a class, after a barrier.
  D2LS_DEVICE float sum(int which, int k) const {
    const Four four = load_shared<Four>(at(k / group, which) + k % group * 16);
    return (four.value[0] + four.value[1]) + (four.value[2] + four.value[3]);
  }

  // 128 bytes that the warp may use for something else after the last `add`.
  D2LS_DEVICE uint32_t labels() const { return labels_; }

 private:
  static constexpr int group = 8;
  static constexpr uint32_t row_bytes = 4 * 32 + 16;  // 16 more than 32 numbers: lanes meet different banks

  static D2LS_EITHER uint32_t warp_bytes(int classes) {
    return 128 + group * row_bytes + (classes + group - 1) / group * 3 * 128;
  }
  static D2LS_DEVICE int lane() { return thread_index() % 32; }
  D2LS_DEVICE uint32_t probabilities() const { return labels_ + 128; }
  D2LS_DEVICE uint32_t sums() const { return probabilities() + group * row_bytes; }
  D2LS_DEVICE uint32_t at(int number, int which) const { return sums() + (3 * number + which) * 128; }

  // Lane 4 g + t: class first + g over the t-th eight lanes.
  D2LS_DEVICE void sum_group(int first) const {
    const int g = lane() / 4, t = lane() % 4;
    if (first + g >= classes_) {
      return;
    }
    float sum[3] = {};
    D2LS_UNROLL
    for (int n = 0; n < 8; n += 4) {
      const Four p = load_shared<Four>(probabilities() + g * row_bytes + 4 * (8 * t + n));
      const Words label = load_shared<Words>(labels_ + 4 * (8 * t + n));
      D2LS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const bool here = static_cast<int>(label.word[i]) == first + g;
        sum[0] += here ? p.value[i] : 0.0f;
        sum[1] += p.value[i];
        sum[2] += here ? 1.0f : 0.0f;
      }
    }
    D2LS_UNROLL
    for (int which = 0; which < 3; ++which) {
      const uint32_t to = at(first / group, which) + 4 * lane();
      store_shared(to, load_shared<float>(to) + sum[which]);
    }
  }

  int classes_;
  uint32_t labels_;
};

template <class T, int UNITS>
D2LS_KERNEL(sums_threads, sums_blocks_an_sm) segmentation_sums_kernel(SegmentationArguments a) {
  const ClassifyArguments& of = a.of;
  const int block = static_cast<int>(block_index()), image = block / of.blocks_per_image;
  const int count = of.height * of.width, warp = thread_index() / 32;
  const uint32_t weights = 4 * of.classes * of.prototypes * UNITS, after = weights + (4 * of.classes + 15) / 16 * 16;
  const ClassSums by_class(after, of.classes, warp);
  load_vectors<UNITS>(image, of, sums_threads);
  for (int k = thread_index(); k < of.classes; k += sums_threads) {
    store_shared(weights + 4 * k, a.labels.weight(k));
  }
  by_class.clear();
  block_barrier();

  float cross_entropy = 0, wrong = 0;
  const int first = block % of.blocks_per_image * sums_pixels;
  for (int start = first; start < count; start += of.blocks_per_image * sums_pixels) {
    const SubPixel own(of, image, start + thread_index() / 16);
    const int label = label_of(a.labels, own, of.classes);
    float u[UNITS];
    features(u, static_cast<const T*>(of.x) + own.pixel * of.channels, of);
    const auto logit_of = [&](int k) { return logit(u, 4 * k * of.prototypes * UNITS, of); };
    Running running;
    D2LS_NO_UNROLL
    for (int k = 0; k < of.classes; ++k) {
      running.add(logit_of(k));
    }
    // Distances from the largest logit, so that nothing cancels: both parts of -log p are positive.
    const float log_sum = logf(running.sum), inverse = 1.0f / running.sum;
    float of_label = 0, of_all = 0;
    by_class.add(label, [&](int k) {
      const float shift = logit_of(k) - running.top, loss = load_shared<float>(weights + 4 * k) * (log_sum - shift);
      of_label = k == label ? loss : of_label;
      of_all += loss;
      return power_of_two(shift * log2_e) * inverse;
    });
    const float smoothing = a.labels.smoothing;
    cross_entropy += label >= 0 ? (1 - smoothing) * of_label + smoothing / of.classes * of_all : 0.0f;
    wrong += label == wrong_label ? 1.0f : 0.0f;
  }

  cross_entropy = warp_sum(cross_entropy);
  wrong = warp_sum(wrong);
  if (thread_index() % 32 == 0) {
    store_shared(by_class.labels(), Two{cross_entropy, wrong});
  }
  block_barrier();
  float* part = a.parts + block_index() * (2 + 3 * of.classes);
  for (int i = thread_index(); i < 2 + 3 * of.classes; i += sums_threads) {
    float sum = 0;
    for (int w = 0; w < sums_warps; ++w) {
      const ClassSums other(after, of.classes, w);
      sum += i < 2 ? load_shared<float>(other.labels() + 4 * i) : other.sum((i - 2) / of.classes, (i - 2) % of.classes);
    }
    part[i] = sum;
  }
}

}  // namespace d2ls::cuda
