// Gradients of the scores of the class vectors: back to the features, and summed over sub-pixels to those of vectors.
//
// Of the latter a warp owns a copy in shared memory. Every eight class vectors its lanes exchange their gradients
// through shared memory, where their features lie too, and each lane sums four of the 8 x 16 products over the 32
// sub-pixels: 16 multiply-adds for each sub-pixel and class vector, as many as the score takes, exact as matrix
// instructions are not and a tenth of the work beside the activations.
#pragma once

#include "cuda/classify_features.cuh"

namespace d2ls::cuda {

template <int UNITS>
class VectorGradients {
 public:
  // After the class vectors at the start of shared memory, a part for each warp.
  D2LS_DEVICE VectorGradients(int vectors, int warp)
      : vectors_(vectors), rows_(4 * vectors * UNITS + warp * warp_bytes(vectors)) {}

  // Of shared memory, with the class vectors.
  static D2LS_EITHER uint32_t bytes(int vectors, int warps) {
    return 4 * vectors * UNITS + warps * warp_bytes(vectors);
  }

  // Before the first `add`, with a barrier of the warp or the block between.
  D2LS_DEVICE void clear() const {
    for (uint32_t i = 4 * lane(); i < warp_bytes(vectors_) - (sums() - rows_); i += 128) {
      store_shared(sums() + i, 0.0f);
    }
  }

  // From the gradient of each logit, of_logit(k, logit k), on to grad, that of the features u, and to the sums.
  template <class OfLogit>
  D2LS_DEVICE void add(float (&grad)[UNITS], const float (&u)[UNITS], const OfLogit& of_logit,
                       const ClassifyArguments& a) const {
    D2LS_UNROLL
    for (int i = 0; i < UNITS; i += 4) {
      store_shared(rows_ + lane() * row_bytes + 4 * i, Four{{u[i], u[i + 1], u[i + 2], u[i + 3]}});
    }
    int k = 0, p = 0;
    float value = 0, of_class = 0;
    D2LS_NO_UNROLL
    for (int first = 0; first < vectors_; first += group) {
      D2LS_NO_UNROLL
      for (int j = 0; j < group; ++j) {
        float own = 0;
        if (first + j < vectors_) {
          const uint32_t vector = 4 * UNITS * (first + j);
          if (p == 0) {
            value = OfLogit::needs_logit || a.prototypes > 1 ? logit(u, vector, a) : 0.0f;
            of_class = of_logit(k, value) / sharing(u, vector, value, a);
          }
          own = a.prototypes == 1 ? of_class : of_class * share(u, vector, value, a);
          D2LS_UNROLL
          for (int i = 0; i < UNITS; i += 4) {
            const Four four = load_shared<Four>(vector + 4 * i);
            D2LS_UNROLL
            for (int n = 0; n < 4; ++n) {
              grad[i + n] += own * four.value[n];
            }
          }
          p = p + 1 < a.prototypes ? p + 1 : 0;
          k += p == 0;
        }
        store_shared(grads() + j * grad_bytes + 4 * lane(), own);
      }
      warp_barrier();
      sum_group(first / group);
      warp_barrier();
    }
  }

  // The warp's sum for a unit of a class vector, after a barrier.
  D2LS_DEVICE float sum(int vector, int unit) const {
    return load_shared<float>(sums() + vector / group * sum_bytes +
                              4 * (unit % per_lane * 32 + vector % group * 4 + unit / per_lane));
  }

  // Numbers of this lane, put aside to free their registers during `add`: four from i on, up to UNITS + 4.
  D2LS_DEVICE void put_aside(int i, const Four& four) const { store_shared(aside() + 4 * i, four); }
  D2LS_DEVICE Four taken_back(int i) const { return load_shared<Four>(aside() + 4 * i); }

  // Where the features lie: the warp may use it for something else after the last `add`.
  D2LS_DEVICE uint32_t rows() const { return rows_; }

 private:
  static constexpr int group = 8, per_lane = UNITS / 4;
  // Rows of features and of gradients are 16 bytes longer than what they hold, so that lanes meet different banks.
  static constexpr uint32_t row_bytes = 4 * UNITS + 16, grad_bytes = 4 * 32 + 16, sum_bytes = 4 * 32 * per_lane;

  static D2LS_EITHER uint32_t warp_bytes(int vectors) {
    return 2 * 32 * row_bytes + group * grad_bytes + (vectors + group - 1) / group * sum_bytes;
  }
  static D2LS_DEVICE int lane() { return thread_index() % 32; }
  D2LS_DEVICE uint32_t aside() const { return rows_ + (32 + lane()) * row_bytes; }
  D2LS_DEVICE uint32_t grads() const { return rows_ + 64 * row_bytes; }
  D2LS_DEVICE uint32_t sums() const { return grads() + group * grad_bytes; }

  // By what the gradient of a logit is divided for all of its class's prototypes.
  static D2LS_DEVICE float sharing(const float (&u)[UNITS], uint32_t first, float value, const ClassifyArguments& a) {
    if (a.prototypes == 1 || a.reduction == Reduction::logsumexp) {
      return 1;
    }
    if (a.reduction == Reduction::mean) {
      return a.prototypes;
    }
    float equals = 0;
    D2LS_NO_UNROLL
    for (int p = 0; p < a.prototypes; ++p) {
      equals += score(u, first + 4 * UNITS * p) == value ? 1.0f : 0.0f;
    }
    return equals;
  }

  // And by what it is multiplied for one of them.
  static D2LS_DEVICE float share(const float (&u)[UNITS], uint32_t vector, float value, const ClassifyArguments& a) {
    if (a.reduction == Reduction::mean) {
      return 1;
    }
    const float own = score(u, vector);
    return a.reduction == Reduction::max ? (own == value ? 1.0f : 0.0f) : power_of_two((own - value) * log2_e);
  }

  // Lane 4 g + t: units t * per_lane and on of vector g.
  D2LS_DEVICE void sum_group(int number) const {
    struct alignas(4 * per_lane) Own {
      float value[per_lane];
    };
    const int lane = from_here(VectorGradients::lane());
    const uint32_t from = grads() + lane / 4 * grad_bytes, units = rows_ + 4 * (lane % 4) * per_lane;
    float sum[per_lane] = {};
    D2LS_UNROLL_TWICE
    for (int n = 0; n < 32; n += 4) {
      const Four grad = load_shared<Four>(from + 4 * n);
      D2LS_UNROLL
      for (int j = 0; j < 4; ++j) {
        const Own u = load_shared<Own>(units + (n + j) * row_bytes);
        D2LS_UNROLL
        for (int i = 0; i < per_lane; ++i) {
          sum[i] += grad.value[j] * u.value[i];
        }
      }
    }
    D2LS_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      const uint32_t to = sums() + number * sum_bytes + 4 * (i * 32 + lane);
      store_shared(to, load_shared<float>(to) + sum[i]);
    }
  }

  int vectors_;
  uint32_t rows_;
};

}  // namespace d2ls::cuda
