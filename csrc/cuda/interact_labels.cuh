// Labels straight from the tiles of the resident kernel: the hypernetwork by all blocks of an image together, then what
// classify_pixels_kernel does, of pixels that lie in shared memory. They are never written.
#pragma once

#include "cuda/classify_features.cuh"
#include "cuda/instructions/grid.cuh"
#include "cuda/interact_tile.cuh"

namespace d2ls::cuda {

// A layer of `outputs` for all entries, which lie in shared memory at `from`: warp `first` of every `step` warps takes a row
// of the weights, and store(entry, output, value) what comes out.
template <class Store>
D2LS_DEVICE void dense(const StepShape& s, int outputs, const float* weight, const float* bias, uint32_t from, int first,
                       int step, const Store& store) {
  for (int output = first; output < outputs; output += step) {
    const float* row = weight + output * s.channels;
    const Share own = Share::of(s.channels, [&](int quad) { return load_four(row + 4 * quad); });
    for (int entry = 0; entry < s.entries; ++entry) {
      const Share token = Share::of(
          s.channels, [&](int quad) { return load_shared<Four>(from + 4 * entry * s.channels + 16 * quad); });
      const float value = own.times(token) + bias[output];
      if (thread_index() % 32 == 0) {
        store(entry, output, value);
      }
    }
  }
}

// The class vectors of an image to shared memory at `to`, UNITS floats each, from its last dictionary at crew.shared. The
// last layer, 16 KB of weights, is small enough for every block to do it alone.
template <int UNITS>
D2LS_DEVICE void class_vectors(const StepShape& s, const HyperWeights& h, float* hidden, uint32_t to, const Crew& crew,
                               GroupBarrier& barrier) {
  const int thread = thread_index(), count = s.entries * s.channels;
  const int first = crew.worker * step_warps + thread / 32, step = crew.workers * step_warps;
  const auto activated = [&](float* layer) {
    return [=](int entry, int output, float value) { layer[entry * s.channels + output] = fmaxf(value, 0.0f); };
  };
  const auto load = [&](const float* layer) {
    barrier.meet();
    for (int i = 4 * thread; i < count; i += 4 * step_threads) {
      store_shared(crew.shared + 4 * i, load_four(layer + i));
    }
    block_barrier();
  };
  block_barrier();
  dense(s, s.channels, h.first_weight, h.first_bias, crew.shared, first, step, activated(hidden));
  load(hidden);
  dense(s, s.channels, h.second_weight, h.second_bias, crew.shared, first, step, activated(hidden + count));
  load(hidden + count);
  for (int i = thread; i < s.entries * UNITS; i += step_threads) {
    store_shared(to + 4 * i, 0.0f);  // beyond the channels
  }
  block_barrier();
  dense(s, s.channels / 16, h.third_weight, h.third_bias, crew.shared, thread / 32, step_warps,
        [=](int entry, int output, float value) { store_shared(to + 4 * (entry * UNITS + output), value); });
  block_barrier();
}

template <class Plan>
D2LS_DEVICE void label_tile(const ResidentTile<Plan>& tile, const ClassifyCall& call, int64_t image, uint32_t vectors) {
  constexpr int UNITS = Plan::channels / 16;
  const ClassifyArguments a = classify_arguments(call, 0);
  const int64_t plane = static_cast<int64_t>(a.height) * a.width * 16;
  for (int row = tile.thread() / 16; row < Plan::pixels; row += Plan::group / 16) {
    const SubPixel own(a, image, tile.start + row);
    float u[UNITS];
    features_from(
        u,
        [&](int first, int lane) {
          const int channel = first + lane;
          const uint32_t word = Plan::Pixels::word(tile.here() + Plan::x, row, channel / 8);
          return Pair<typename Plan::T>::first(load_shared<uint16_t>(word + channel % 8 * 2));
        },
        a);
    store_label(u, vectors, a, image * plane + own.at(a), own.inside);
  }
}

}  // namespace d2ls::cuda
