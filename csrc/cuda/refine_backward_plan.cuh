// What the kernel of refine's backward is made of, and where its shared memory has what.
#pragma once

#include "cuda/head_softmax.cuh"
#include "cuda/row_gradient.cuh"
#include "cuda/undo_norm.cuh"

namespace d2ls::cuda {

struct RefineBackwardArguments {
  const void *x, *pe, *key, *value, *grad;  // grad: of x', or of u where the norm is already undone
  const float *key_bias, *out_bias, *norm_weight;
  void* grad_x;  // [dictionaries * images, pixels, channels], as is grad_pe, which may be null
  float* grad_pe;
  float *part_key, *part_value;              // [dictionaries * images, chunks, heads * entries, channels]
  float* part_key_bias;                      // [dictionaries * images, chunks, warps of pixels, heads * entries]
  float *part_norm_weight, *part_norm_bias;  // [dictionaries * images, chunks, warps of pixels, channels]
  float* part_out_bias;                      // [dictionaries * images, chunks, warps of rows, channels]
  int pixels, images, pe_images, dictionaries, channels, heads, entries, block, chunks, tiles_per_chunk;
  bool add_pe;  // grad_pe has something to which the gradient is added
  float eps;
};

// NORM: the kernel recomputes u and undoes the norm, which takes all rows of key and value in one block.
template <class Kind, class Architecture, int C, bool NORM>
struct RefineBackwardPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr bool half = sizeof(T) == 2, large = Architecture::large_shared_memory, norm = NORM;
  static constexpr int channels = C;
  static constexpr int rows = half ? 64 : 32, pixels = (half ? 64 : 32) / (large ? 1 : 2);
  // 384 threads have 168 registers each: enough for an accumulator of C / 2.
  static constexpr int pixel_group = 2 * pixels, row_group = 2 * rows, threads = pixel_group + 2 * row_group;
  static constexpr int pair = pixel_group + row_group;  // threads of two groups that hand over
  static constexpr int blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  using Weights = Tile<T, pixels, rows>;
  using Slice = Tile<T, rows, Rows::panel>;  // of Rows
  // At C = 256 64 KB of key and value, four times 32 KB of pixels (16 KB where there are 163 KB), 16 KB of weights.
  static constexpr uint32_t key = 0, value = Rows::bytes, buffers = 2 * Rows::bytes;
  static constexpr uint32_t weights = buffers + 4 * Pixels::bytes, scores = weights + Weights::bytes;
  static constexpr uint32_t bias = scores + Weights::bytes, out_bias = bias + rows * sizeof(float);
  static constexpr uint32_t norm_weight = out_bias + C * sizeof(float), sums = norm_weight + C * sizeof(float);
  using Sums = SharedSums<C / 16 + rows / 32, pixel_group>;  // of the norm's bias and weight, then of key_bias
  static constexpr uint32_t chunk = sums + Sums::bytes, shared_bytes = chunk + 16;
  static_assert(shared_bytes <= (large ? 227 : 163) * 1024);

  // Four buffers in turn: a tile's x, its y = x + pe, its gradient, and one for the next tile's x. x of the next tile comes
  // where the gradient of the last one was, its encoding where x was, its gradient where y was, each as soon as that is
  // no longer needed: something is always on its way, though two whole tiles would not fit.
  static D2LS_DEVICE uint32_t buffer(int which, int tile) { return buffers + ((which - tile) & 3) * Pixels::bytes; }
  static D2LS_DEVICE uint32_t x(int tile) { return buffer(0, tile); }
  static D2LS_DEVICE uint32_t y(int tile) { return buffer(1, tile); }
  static D2LS_DEVICE uint32_t grad(int tile) { return buffer(2, tile); }

  // Barriers: of the warps of pixels; W and du are there; dz and y are there; they are no longer needed.
  static constexpr int together = 1, value_full = 2, key_full = 3, value_free = 4, key_free = 5;
};

// Which pixels and which dictionary the block has: in shared memory, for registers are short.
struct alignas(16) Chunk {
  int image, dictionary, first, index;

  D2LS_DEVICE static Chunk of(const RefineBackwardArguments& a, int tile_pixels) {
    // Blocks that share a tile of pixels are neighbours: it is read from memory once and then from L2.
    const int image = static_cast<int>(block_index() / a.dictionaries / a.chunks);
    const int index = static_cast<int>(block_index() / a.dictionaries % a.chunks);
    return {image, static_cast<int>(block_index() % a.dictionaries * a.images + image),
            index * a.tiles_per_chunk * tile_pixels, index};
  }
  // Among the partial results.
  D2LS_DEVICE int64_t part(int chunks) const { return static_cast<int64_t>(dictionary) * chunks + index; }
};

}  // namespace d2ls::cuda
