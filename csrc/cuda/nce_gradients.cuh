// The kernel of the backward of nce_sums: scores computed again, then the gradients of 32 pixels, and from these what
// they add to the entries'.
//
// A warp has four pixels up to their own gradient. Then the block's threads change roles: each has one channel of all
// entries' gradients, which it sums in shared memory over the 32 pixels, so that no two threads add to one number.
#pragma once

#include "cuda/nce_scores.cuh"

namespace d2ls::cuda {

struct NceGradientArguments {
  NceArguments sums;
  const float* log_sum_exp;
  NceSumsGradients given;
  void* grad_x;
};

// Shared memory: the entries' gradients [entries, channels]; the unit pixels [32, channels]; the scores and then their
// gradients, 32 in a row, a row for each entry; behind them a row of what the gradients give along the pixels, and one of
// the pixels' lengths.
struct NceLayout {
  int entries, channels;

  D2LS_EITHER uint32_t units() const { return 4 * entries * channels; }
  D2LS_EITHER uint32_t scores() const { return units() + 4 * nce_pixels * channels; }
  D2LS_EITHER uint32_t bytes() const { return scores() + 4 * nce_pixels * (entries + 2); }
};

// Eight numbers as type T.
template <class T>
D2LS_DEVICE void store_eight(T* to, const float (&from)[8]) {
  D2LS_UNROLL
  for (int i = 0; i < 8; i += 16 / static_cast<int>(sizeof(T))) {
    Words words;
    D2LS_UNROLL
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 2) {
        words.word[w] = Pair<T>::pack(from[2 * w], from[2 * w + 1]);
      } else {
        words.word[w] = float_as_word(from[i + w]);
      }
    }
    *reinterpret_cast<Words*>(to + i) = words;
  }
}

// From the scores in shared memory, four columns from `column` on, to their gradients in the same place, and in the row
// behind them what they give along each pixel. A lane takes the scores that it has stored.
D2LS_DEVICE void nce_score_gradients(const NceGradientArguments& a, const NceLayout& layout, uint32_t column,
                                     int64_t image, int label) {
  const NceCall& of = a.sums.of;
  const int lane = thread_index() % 32;
  const int64_t classes = image * of.classes;
  const bool labelled = label >= 0 && label < of.classes;
  const float of_rows = labelled && of.rows ? a.given.loss[classes + label] : 0.0f;
  const float of_own = (labelled && of.columns ? a.given.positive[classes + label] : 0.0f) - of_rows;
  Denominator over_all, over_own;
  for (int entry = lane / 4; entry < layout.entries; entry += nce_group) {
    const float score = load_shared<float>(column + 4 * (entry * nce_pixels + lane % 4));
    over_all.add({score, 1});
    if (entry / of.prototypes == label) {
      over_own.add({score, 1});
    }
  }
  const float all = add_over_entries(over_all).log(), own = add_over_entries(over_own).log();
  float along = 0;
  for (int entry = lane / 4; entry < layout.entries; entry += nce_group) {
    const uint32_t at = column + 4 * (entry * nce_pixels + lane % 4);
    const int k = entry / of.prototypes;
    const float score = load_shared<float>(at);
    float grad = of_rows * power_of_two((score - all) * log2_e);
    if (of.columns) {
      grad += a.given.log_sum_exp[classes + k] * power_of_two((score - a.log_sum_exp[classes + k]) * log2_e);
    }
    grad += k == label ? of_own * power_of_two((score - own) * log2_e) : 0.0f;
    grad = labelled ? grad : 0.0f;
    store_shared(at, grad);
    along += grad * score;
  }
  along = sum_over_entries(along);
  if (lane < 4) {
    store_shared(column + 4 * (layout.entries * nce_pixels + lane), along);
  }
}

// From the gradients of the scores to those of the warp's pixels from `first` on.
template <class T>
D2LS_DEVICE void nce_pixel_gradients(const NceGradientArguments& a, const NceLayout& layout, uint32_t column,
                                     const float* rows, const UnitPixels& pixels, int64_t image, int first) {
  const NceCall& of = a.sums.of;
  const int channel = 8 * (thread_index() % 32);
  if (channel >= of.channels) {
    return;
  }
  float grad[nce_warp_pixels][8] = {};
  D2LS_NO_UNROLL
  for (int j = 0; j < layout.entries; ++j) {
    const Four scores = load_shared<Four>(column + 4 * j * nce_pixels);
    float entry[8];
    load_eight(entry, rows + static_cast<int64_t>(j) * of.channels + channel, true);
    D2LS_UNROLL
    for (int t = 0; t < nce_warp_pixels; ++t) {
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        grad[t][i] += scores.value[t] * entry[i];
      }
    }
  }
  const Four along = load_shared<Four>(column + 4 * layout.entries * nce_pixels);
  const Four length = load_shared<Four>(column + 4 * (layout.entries + 1) * nce_pixels);
  D2LS_UNROLL
  for (int t = 0; t < nce_warp_pixels; ++t) {
    const float scale = 1.0f / fmaxf(length.value[t], nce_shortest);
    const float share = length.value[t] < nce_shortest ? 0.0f : along.value[t];
    D2LS_UNROLL
    for (int i = 0; i < 8; ++i) {
      grad[t][i] = (grad[t][i] - share * pixels.x[t][i]) * scale;
    }
    if (first + t < of.pixels) {
      store_eight(static_cast<T*>(a.grad_x) + (image * of.pixels + first + t) * of.channels + channel, grad[t]);
    }
    const uint32_t unit =
        layout.units() + 4 * ((thread_index() / 32 * nce_warp_pixels + t) * of.channels + channel);
    D2LS_UNROLL
    for (int i = 0; i < 8; i += 4) {
      const float* x = pixels.x[t] + i;
      store_shared(unit + 4 * i, Four{{x[0], x[1], x[2], x[3]}});
    }
  }
}

// This thread's channel of all entries' gradients, over the block's pixels.
D2LS_DEVICE void nce_entry_gradients(const NceLayout& layout) {
  if (thread_index() >= layout.channels) {
    return;
  }
  float units[nce_pixels];
  D2LS_UNROLL
  for (int n = 0; n < nce_pixels; ++n) {
    units[n] = load_shared<float>(layout.units() + 4 * (n * layout.channels + thread_index()));
  }
  D2LS_NO_UNROLL
  for (int j = 0; j < layout.entries; ++j) {
    float sum = 0;
    D2LS_UNROLL
    for (int n = 0; n < nce_pixels; n += 4) {
      const Four grad = load_shared<Four>(layout.scores() + 4 * (j * nce_pixels + n));
      D2LS_UNROLL
      for (int i = 0; i < 4; ++i) {
        sum += grad.value[i] * units[n + i];
      }
    }
    const uint32_t to = 4 * (j * layout.channels + thread_index());
    store_shared(to, load_shared<float>(to) + sum);
  }
}

template <class T>
D2LS_KERNEL(nce_threads, nce_blocks_an_sm) nce_gradients_kernel(NceGradientArguments a) {
  const NceCall& of = a.sums.of;
  const NceLayout layout{a.sums.entries(), of.channels};
  const int image = static_cast<int>(block_index()) / a.sums.blocks_per_image;
  const int lane = thread_index() % 32, mine = thread_index() / 32 * nce_warp_pixels;
  const uint32_t column = layout.scores() + 4 * mine;
  const float* rows = of.entries + static_cast<int64_t>(image) * layout.entries * of.channels;
  for (int i = thread_index(); i < layout.entries * of.channels; i += nce_threads) {
    store_shared(4 * i, 0.0f);
  }
  const int start = static_cast<int>(block_index()) % a.sums.blocks_per_image * nce_pixels;
  for (int tile = start; tile < of.pixels; tile += a.sums.blocks_per_image * nce_pixels) {
    const int first = tile + mine;
    const UnitPixels pixels(a.sums, image, first, T());
    block_barrier();  // the entries' gradients have been summed, or cleared
    if (lane == 0) {
      const float* length = pixels.length;
      store_shared(column + 4 * (layout.entries + 1) * nce_pixels, Four{{length[0], length[1], length[2], length[3]}});
    }
    D2LS_NO_UNROLL
    for (int group = 0; group < layout.entries; group += nce_group) {
      const float score = pixels.scores(rows, group, layout.entries, of.channels);
      const int entry = group + lane / 4;
      if (entry < layout.entries) {
        store_shared(column + 4 * (entry * nce_pixels + lane % 4), score);
      }
    }
    nce_score_gradients(a, layout, column, image, nce_label(a.sums, image, first));
    warp_barrier();
    nce_pixel_gradients<T>(a, layout, column, rows, pixels, image, first);
    block_barrier();
    nce_entry_gradients(layout);
  }
  // A thread's sums are its own: no barrier.
  float* part = a.sums.parts + block_index() * layout.entries * of.channels;
  for (int j = 0; j < layout.entries && thread_index() < of.channels; ++j) {
    part[j * of.channels + thread_index()] = load_shared<float>(4 * (j * of.channels + thread_index()));
  }
}

}  // namespace d2ls::cuda
