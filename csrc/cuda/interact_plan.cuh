// What the resident kernel of interact keeps where, in shared memory and between its blocks.
#pragma once

#include "cuda/interact.h"
#include "cuda/merge.cuh"
#include "cuda/pixel_rows.cuh"
#include "cuda/step_rows.cuh"

namespace d2ls::cuda {

// Two warpgroups with 64 pixels each, which stay theirs to the end. Beside a tile of x lies its encoding, or x + pe: as an
// operand of wgmma the sum has to be in shared memory, and pe cannot be recovered from a rounded sum. It is copied again
// from L2 while the dictionary step runs, which hides it; kept apart it would take the room of 64 pixels. At C = 256 these
// are 128 KB, and key, value and query 96 KB.
template <class Kind, class Architecture, int C>
struct InteractPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr int channels = C;
  static constexpr int rows = 64, pixels = 64;
  static constexpr int group = 128, groups = 2, threads = groups * group;
  static constexpr int blocks = 1, block_pixels = groups * pixels;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  static constexpr uint32_t key = 0, value = Rows::bytes, query = 2 * Rows::bytes;
  // Between two passes over the pixels key, value and query are the step's, and their memory is used for other things.
  static constexpr uint32_t free_bytes = 3 * Rows::bytes;
  static constexpr uint32_t exchange = key, stats = query;
  static constexpr uint32_t x = free_bytes, tile_bytes = 2 * Pixels::bytes, pe = x + Pixels::bytes;
  static constexpr uint32_t bias = x + groups * tile_bytes, norm = bias + rows * sizeof(float);
  static constexpr uint32_t shared_bytes = norm + Norm<C>::bytes;
  static_assert(threads == step_threads && shared_bytes <= 227 * 1024);
};

// An image's memory between the blocks that work on it, which is only ever in L2.
template <class T>
struct ImageScratch {
  Parts parts;  // [blocks, heads * entries, ..]
  float *mixed, *sums, *hidden, *key_bias;  // hidden: both layers of the hypernetwork
  T *query, *key, *value;

  D2LS_EITHER ImageScratch(float* memory, const StepShape& s, int blocks)
      : parts(memory, static_cast<int64_t>(blocks) * s.heads * s.entries, s.channels) {
    const int64_t rows = s.heads * s.entries, numbers = rows * s.channels;
    sums = memory + padded(Parts::floats(blocks * rows, s.channels));
    hidden = sums + s.entries * s.channels;
    mixed = hidden + 2 * s.entries * s.channels;
    key_bias = mixed + padded(s.entries * s.inner);
    query = reinterpret_cast<T*>(key_bias + padded(rows));
    key = query + numbers;
    value = key + numbers;
  }

  static D2LS_EITHER int64_t padded(int64_t floats) { return (floats + 31) / 32 * 32; }
  static int64_t floats(const StepShape& s, int blocks) {
    const int64_t rows = s.heads * s.entries;
    return padded(Parts::floats(blocks * rows, s.channels)) + 3 * s.entries * s.channels + padded(s.entries * s.inner) +
           padded(rows) + padded(3 * rows * s.channels * static_cast<int64_t>(sizeof(T)) / 4 + 1);
  }
};

struct InteractArguments {
  InteractCall call;
  uint32_t* counters;  // of every image, counter_words apart
  float* scratch;      // of the images of a wave
  int64_t first_image, image_floats;
  int blocks;  // of an image
};

}  // namespace d2ls::cuda
