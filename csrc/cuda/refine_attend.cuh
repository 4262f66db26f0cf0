// The kernel of refine_attend: one chunk of the pixels of an image, updated by one dictionary and attended to by another,
// in one pass.
//
// Two groups of four warps: one refines 64 pixels as refine_chunk does, 16 in a warp, and leaves x' and x' + pe in their
// place in shared memory; the other takes them from there as attend_chunk does, while the first refines the next 64. They
// hand the two stages of memory to each other by two barriers each: one says that a stage is full, one that it is free.
#pragma once

#include "cuda/head_softmax.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/pixel_rows.cuh"

namespace d2ls::cuda {

struct RefineAttendArguments {
  const void *x, *pe, *key, *value, *query;
  const float *key_bias, *out_bias, *norm_weight, *norm_bias;
  void* refined;
  float *part_context, *part_max, *part_sum;
  int pixels, images, pe_images, dictionaries, channels, heads, entries, queries, chunks, tiles_per_chunk;
  float eps;
};

template <class Kind, class Architecture, int C>
struct RefineAttendPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr int channels = C;
  static constexpr int rows = 64, pixels = 64, stages = 2;
  static constexpr int group = 128, threads = 2 * group;
  static constexpr int blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  // At C = 256 96 KB of key, value and query and 128 KB of pixels: out_bias has no room left and is read from memory.
  static constexpr uint32_t key = 0, value = Rows::bytes, query = 2 * Rows::bytes, x = 3 * Rows::bytes;
  static constexpr uint32_t stage_bytes = 2 * Pixels::bytes, pe = x + Pixels::bytes;
  static constexpr uint32_t bias = x + stages * stage_bytes, norm = bias + rows * sizeof(float);
  static constexpr uint32_t shared_bytes = norm + Norm<C>::bytes;
  static_assert(shared_bytes <= 227 * 1024);

  static D2LS_DEVICE uint32_t stage(int tile) { return tile % stages * stage_bytes; }
  static D2LS_DEVICE int full(int tile) { return 1 + tile % stages; }
  static D2LS_DEVICE int free(int tile) { return 1 + stages + tile % stages; }
};

// x' and x' + pe, each rounded, of a warp's 16 rows to where x and pe were.
template <class Plan>
D2LS_DEVICE void replace_pixels(const float (&rows)[Plan::channels / 8][4], uint32_t stage, int row) {
  using M = typename Plan::Pixels;
  using P = Pair<typename Plan::T>;
  const auto to = pairs(M(), stage + Plan::x, row);
  D2LS_UNROLL
  for (int c = 0; c < Plan::channels / 8; ++c) {
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t x = to.at(8 * half, c), pe = x + M::bytes;
      const uint32_t word = P::pack(rows[c][2 * half], rows[c][2 * half + 1]);
      store_shared(x, word);
      store_shared(pe, P::add(word, load_shared<uint32_t>(pe)));
    }
  }
}

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) refine_attend_chunk(RefineAttendArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    using Pixels = typename Plan::Pixels;
    using Rows = typename Plan::Rows;
    constexpr int C = Plan::channels;
    const int thread = thread_index() % Plan::group, row = thread / 32 * 16;
    // Blocks that share a tile of pixels are neighbours: it is read from memory once and then from L2.
    const int image = static_cast<int>(block_index() / a.dictionaries / a.chunks);
    const int chunk = static_cast<int>(block_index() / a.dictionaries % a.chunks);
    const int first = chunk * a.tiles_per_chunk * Plan::pixels;
    const int dictionary = static_cast<int>(block_index() % a.dictionaries * a.images + image);
    const int tiles = smaller(a.tiles_per_chunk, (a.pixels - first + Plan::pixels - 1) / Plan::pixels);
    const Entries entries{a.heads, a.entries};
    const auto rows_of = [&](const void* matrix, int rows) {
      return static_cast<const T*>(matrix) + static_cast<int64_t>(dictionary) * rows * a.channels;
    };

    if (thread_index() < Plan::group) {
      const Norm<C> norm{Plan::norm};
      const auto image_of = [&](const void* pixels, int index) {
        return static_cast<const T*>(pixels) + static_cast<int64_t>(from_here(index)) * a.pixels * a.channels;
      };
      const auto fetch = [&](int tile) {
        const int start = first + tile * Plan::pixels;
        const uint32_t to = Plan::stage(tile);
        const auto source = [&](int r) { return start + r < a.pixels ? start + r : -1; };
        Pixels::load(to + Plan::x, row, row + 16, image_of(a.x, image), a.channels, thread % 32, 32, source);
        Pixels::load(to + Plan::pe, row, row + 16, image_of(a.pe, image % a.pe_images), a.channels, thread % 32, 32,
                     source);
        copy_commit();
      };
      const auto source = [&](int place) { return entries.row(place); };
      Rows::load(Plan::key, 0, Plan::rows, rows_of(a.key, a.heads * a.entries), a.channels, thread, Plan::group, source);
      Rows::load(Plan::value, 0, Plan::rows, rows_of(a.value, a.heads * a.entries), a.channels, thread, Plan::group,
                 source);
      fetch(0);
      const float* key_bias = a.key_bias + static_cast<int64_t>(dictionary) * a.heads * a.entries;
      for (int place = thread; place < Plan::rows; place += Plan::group) {
        store_shared(Plan::bias + 4 * place, entries.bias(key_bias, place));
      }
      norm.load(a.norm_weight, a.norm_bias, a.channels, Plan::group);
      copy_wait<0>();
      Plan::Unit::fence();
      block_barrier();

      for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t here = Plan::stage(tile);
        copy_wait<0>();
        warp_barrier();
        float rows[C / 8][4];
        const int channels = from_here(a.channels);
        const auto out_bias = [&](int c) {
          const float* two = a.out_bias + 8 * c + 2 * (thread % 4);
          return 8 * c < channels ? Two{two[0], two[1]} : Two{0, 0};
        };
        residual(rows, here + Plan::x, row, out_bias, Pixels());
        float scores[Plan::rows / 8][4] = {};
        Plan::Unit::sum_by_rows(scores, here + Plan::x, here + Plan::pe, row, Plan::key, Pixels(), Rows());
        if (tile + 1 < tiles) {
          if (tile > 0) {
            named_barrier_wait(Plan::free(tile + 1), Plan::threads);
          }
          fetch(tile + 1);
        }
        head_softmax(scores, entries, Plan::bias);
        Plan::Unit::result_by_tile(rows, scores, Plan::value, Rows());
        normalise(rows, norm, a.channels, a.eps);
        warp_barrier();  // all lanes have read the 16 pixels
        replace_pixels<Plan>(rows, here, row);
        Plan::Unit::fence();
        named_barrier_arrive(Plan::full(tile), Plan::threads);
        store_rows(rows, const_cast<T*>(image_of(a.refined, dictionary)), first + tile * Plan::pixels + row, a.pixels,
                   a.channels);
      }
    } else {
      Rows::load(Plan::query, 0, Plan::rows, rows_of(a.query, a.queries), a.channels, thread, Plan::group,
                 [&](int r) { return r < a.queries ? r : -1; });
      copy_commit();
      copy_wait<0>();
      Plan::Unit::fence();
      block_barrier();
      OnlineSoftmax<T, Plan::pixels, C> softmax;
      for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t here = Plan::stage(tile);
        named_barrier_wait(Plan::full(tile), Plan::threads);
        float scores[Plan::pixels / 8][4] = {};
        Plan::Unit::rows_by_rows(scores, Plan::query, row, here + Plan::pe, Rows(), Pixels());
        softmax.weigh(scores, a.pixels - first - tile * Plan::pixels);
        Plan::Unit::result_by_tile(softmax.context, scores, here + Plan::x, Pixels());
        if (tile + 2 < tiles) {
          named_barrier_arrive(Plan::free(tile), Plan::threads);
        }
      }
      const int64_t part = (static_cast<int64_t>(dictionary) * a.chunks + chunk) * a.queries;
      softmax.store(a.part_context + part * a.channels, a.part_max + part, a.part_sum + part, row, a.queries,
                    a.channels);
    }
  }
}

}  // namespace d2ls::cuda
