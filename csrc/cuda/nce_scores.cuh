// What both kernels of nce share: four pixels of a warp, their scores with the entries, eight at a time, and labels.
//
// A lane has eight channels of each pixel: a warp reads a pixel at once. The scores are as many multiply-adds as there
// are numbers read, times the entries, of which there are few: in float32, whatever the pixels' type, they take as long
// as reading the pixels, and matrix instructions would have to round the entries.
#pragma once

#include "cuda/nce.h"
#include "cuda/products.cuh"

namespace d2ls::cuda {

constexpr int nce_threads = 256, nce_warps = nce_threads / 32, nce_warp_pixels = 4;
constexpr int nce_pixels = nce_warps * nce_warp_pixels, nce_blocks_an_sm = 2, nce_group = 8;
// So many entries fit into shared memory with their gradients and 32 pixels.
constexpr int nce_entries = 96;
constexpr float nce_shortest = 1e-12f;  // what a shorter vector is divided by

struct NceArguments {
  NceCall of;
  float* parts;
  int blocks_per_image;

  D2LS_EITHER int entries() const { return of.classes * of.prototypes; }
};

// A softmax's denominator, or that of several put together.
struct Denominator {
  float top = -infinity(), sum = 0;

  D2LS_DEVICE void add(const Denominator& other) {
    const float highest = fmaxf(top, other.top);
    if (highest > -infinity()) {
      sum = sum * power_of_two((top - highest) * log2_e) + other.sum * power_of_two((other.top - highest) * log2_e);
      top = highest;
    }
  }
  D2LS_DEVICE float log() const { return top + logf(sum); }
};

// Over the eight lanes of equal t = lane % 4.
D2LS_DEVICE float sum_over_entries(float value) {
  value += shuffle_xor(value, 4);
  value += shuffle_xor(value, 8);
  return value + shuffle_xor(value, 16);
}

D2LS_DEVICE Denominator add_over_entries(Denominator value) {
  for (int mask = 4; mask <= 16; mask *= 2) {
    value.add({shuffle_xor(value.top, mask), shuffle_xor(value.sum, mask)});
  }
  return value;
}

// Eight numbers from `from`, or zeros.
template <class T>
D2LS_DEVICE void load_eight(float (&to)[8], const T* from, bool valid) {
  D2LS_UNROLL
  for (int i = 0; i < 8; i += 16 / static_cast<int>(sizeof(T))) {
    const Words words = valid ? *reinterpret_cast<const Words*>(from + i) : Words{};
    D2LS_UNROLL
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 2) {
        to[2 * w] = Pair<T>::first(words.word[w]);
        to[2 * w + 1] = Pair<T>::second(words.word[w]);
      } else {
        to[i + w] = word_as_float(words.word[w]);
      }
    }
  }
}

// Lanes whose numbers differ in the bit MASK give each other half of what they have, and add what they get.
template <int MASK>
D2LS_DEVICE void halve(float (&values)[4 * nce_group]) {
  const bool upper = thread_index() & MASK;
  D2LS_UNROLL
  for (int i = 0; i < MASK; ++i) {
    const float given = upper ? values[i] : values[i + MASK], kept = upper ? values[i + MASK] : values[i];
    values[i] = kept + shuffle_xor(given, MASK);
  }
}

// This lane's eight channels of the warp's four pixels from `first` on, as unit vectors; zeros beyond the image.
struct UnitPixels {
  float x[nce_warp_pixels][8];
  float length[nce_warp_pixels];

  template <class T>
  D2LS_DEVICE UnitPixels(const NceArguments& a, int64_t image, int first, T) {
    const int channel = 8 * (thread_index() % 32);
    D2LS_UNROLL
    for (int t = 0; t < nce_warp_pixels; ++t) {
      const bool valid = first + t < a.of.pixels && channel < a.of.channels;
      const int64_t pixel = image * a.of.pixels + (valid ? first + t : 0);
      load_eight(x[t], static_cast<const T*>(a.of.x) + pixel * a.of.channels + (valid ? channel : 0), valid);
    }
    D2LS_UNROLL
    for (int t = 0; t < nce_warp_pixels; ++t) {
      float squares = 0;
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        squares += x[t][i] * x[t][i];
      }
      length[t] = sqrtf(warp_sum(squares));
      const float scale = 1.0f / fmaxf(length[t], nce_shortest);
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        x[t][i] *= scale;
      }
    }
  }

  // Lane 4 j + t: the score of pixel t with entry first + j of `entries` rows (zero beyond them).
  D2LS_DEVICE float scores(const float* rows, int first, int entries, int channels) const {
    const int channel = 8 * (thread_index() % 32);
    float products[4 * nce_group];
    rows += first * channels + channel;
    D2LS_UNROLL
    for (int j = 0; j < nce_group; ++j, rows += channels) {
      float entry[8];
      load_eight(entry, rows, first + j < entries && channel < channels);
      D2LS_UNROLL
      for (int t = 0; t < 4; ++t) {
        float sum = 0;
        D2LS_UNROLL
        for (int i = 0; i < 8; ++i) {
          sum += x[t][i] * entry[i];
        }
        products[4 * j + t] = sum;
      }
    }
    // Every exchange halves the sums that a lane has: 31 in all, not five for each of 32.
    halve<16>(products);
    halve<8>(products);
    halve<4>(products);
    halve<2>(products);
    halve<1>(products);
    return products[0];
  }
};

// The label of this lane's pixel t: a class, `classes` for one that is none, or -1 where it is ignored or no pixel.
D2LS_DEVICE int nce_label(const NceArguments& a, int64_t image, int first) {
  const int pixel = first + thread_index() % 4;
  if (pixel >= a.of.pixels) {
    return -1;
  }
  const int64_t label = a.of.target[image * a.of.pixels + pixel];
  if (label == a.of.ignore_index) {
    return -1;
  }
  return label >= 0 && label < a.of.classes ? static_cast<int>(label) : a.of.classes;
}

inline int nce_blocks(const Device& device, const NceCall& call) {
  const int64_t tiles = (call.pixels + nce_pixels - 1) / nce_pixels;
  const int64_t blocks = static_cast<int64_t>(nce_blocks_an_sm) * device.multiprocessors;
  const int64_t wanted = (blocks + call.batch - 1) / call.batch;
  return static_cast<int>(wanted < tiles ? wanted : tiles);
}

inline Error check_nce(const NceCall& call) {
  if (call.pixels > 1 << 24) {
    return "the CUDA kernels take up to 2^24 pixels an image to contrast, got " + std::to_string(call.pixels);
  }
  if (static_cast<int64_t>(call.classes) * call.prototypes > nce_entries) {
    return "the CUDA kernels take up to " + std::to_string(nce_entries) + " entries to contrast, got " +
           std::to_string(static_cast<int64_t>(call.classes) * call.prototypes);
  }
  if (call.channels % 16 != 0 || call.channels < 1 || call.channels > 256) {
    return "the CUDA kernels take channels in multiples of 16 up to 256, got " + std::to_string(call.channels);
  }
  return "";
}

}  // namespace d2ls::cuda
