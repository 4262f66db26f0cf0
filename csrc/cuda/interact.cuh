// The resident kernel of interact: all stages in one launch, x read once and, where wanted, written once.
//
// A block keeps 128 pixels of an image from the first look to the last; the blocks of an image are a group that meets
// between the phases of a dictionary step (step_update.cuh, step_rows.cuh), which they share. Images do not wait for each
// other. Of a look a block leaves its part of the softmax, 57 KB for 56 rows; an item of mix_context puts one row of all
// parts together, in their order, so that results repeat bit for bit.
//
// Labels, where wanted, cost two more meetings and a read of the pixels less than a launch of their own.
//
// What 1 x 512x512 should take (16,384 pixels, 128 blocks; 8 heads x 7 entries, C = 256, 3 stages and a last look), an
// estimate to be measured:
//   16 meetings, an atomic and a poll in L2 each, 1.2 us                                                    20 us
//   4 looks and 3 updates, products that wait for each other with a softmax or a norm between, 2 us each    14 us
//   4 times parts of 7 MB written to L2 and read from there, 3 us                                           12 us
//   5 steps of up to three phases, each one or two latencies of L2, 2.5 us                                  12 us
//   4 times rows of 96 KB from L2                                                                            4 us
//   x and pe from memory, 16 MB                                                                              5 us
// Together 67 us.
#pragma once

#include "cuda/interact_labels.cuh"

namespace d2ls::cuda {

// Key, value and query rows that meet the pixels next, from where the step left them, by all threads.
template <class Plan>
D2LS_DEVICE void load_rows(const InteractCall& call, const ImageScratch<typename Plan::T>& scratch, int updates) {
  const Entries entries{call.shape.heads, call.shape.entries};
  const int channels = call.shape.channels, thread = thread_index(), rows = entries.heads * entries.entries;
  if (updates > 0) {
    const auto source = [&](int place) { return entries.row(place); };
    Plan::Rows::load(Plan::key, 0, Plan::rows, scratch.key, channels, thread, Plan::threads, source);
    Plan::Rows::load(Plan::value, 0, Plan::rows, scratch.value, channels, thread, Plan::threads, source);
    for (int place = thread; place < Plan::rows; place += Plan::threads) {
      store_shared(Plan::bias + 4 * place, entries.bias(scratch.key_bias, place));
    }
    const RefineParameters& refine = call.refine[updates - 1];
    Norm<Plan::channels>{Plan::norm}.load(refine.norm_weight, refine.norm_bias, channels, Plan::threads);
  }
  if (updates < call.looks) {
    Plan::Rows::load(Plan::query, 0, Plan::rows, scratch.query, channels, thread, Plan::threads,
                     [&](int r) { return r < rows ? r : -1; });
  }
  copy_commit();
}

D2LS_DEVICE StepShape from_here(const StepShape& s) {
  return {from_here(s.heads), from_here(s.entries), from_here(s.channels), from_here(s.inner), s.eps};
}

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) interact_kernel(InteractArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    const InteractCall& call = a.call;
    const int worker = static_cast<int>(block_index() % a.blocks), slot = static_cast<int>(block_index() / a.blocks);
    const Crew crew{worker, a.blocks, 0};
    // Found where they are used: as loop invariants they would take registers from the products.
    const auto image = [&] { return a.first_image + from_here(slot); };
    const auto scratch = [&] { return ImageScratch<T>(a.scratch + from_here(slot) * a.image_floats, call.shape, a.blocks); };
    GroupBarrier barrier{a.counters + a.first_image * counter_words, slot, static_cast<uint32_t>(a.blocks)};
    const ResidentTile<Plan> tile{worker * Plan::block_pixels + ResidentTile<Plan>::group() * Plan::pixels,
                                  static_cast<int>(call.pixels), call.shape.channels};
    const auto image_of = [&](const void* pixels, int64_t index) {
      return static_cast<const T*>(pixels) + index * call.pixels * call.shape.channels;
    };
    const auto fetch_encoding = [&] { tile.fetch(Plan::pe, image_of(call.pe, image() % call.pe_images)); };

    tile.fetch(Plan::x, image_of(call.x, image()));
    fetch_encoding();
    for (int updates = 0;; ++updates) {  // how often the dictionary has been updated when the pixels meet it
      const bool refines = updates > 0 && updates <= call.stages, looks = updates < call.looks;
      const StepShape s = from_here(call.shape);
      const int tokens = s.entries * s.channels;
      const ImageScratch<T> shared = scratch();
      const float* position = call.dictionary + image() * tokens;
      Tokens entries{position, nullptr, position, nullptr};
      const UpdateWeights& update = call.look[updates > 0 ? updates - 1 : 0].update;
      if (updates > 0) {
        mix_context(s, update, {shared.parts.context, shared.parts.top, shared.parts.sum, a.blocks}, shared.mixed,
                    crew);
        barrier.meet();
        add_update(s, update, shared.mixed, shared.sums, crew);
        barrier.meet();
        const auto after = [&](int stage) { return call.stage_dictionaries + (stage * call.batch + image()) * tokens; };
        entries.before = updates > 1 ? after(updates - 2) : entries.before;
        entries.sums = shared.sums;
        entries.after = refines ? after(updates - 1) : call.last_dictionary + image() * tokens;
      }
      const StepRows to{looks ? shared.query : nullptr, refines ? shared.key : nullptr, shared.value, shared.key_bias};
      fold_rows<T>(s, update, call.refine[refines ? updates - 1 : 0].entries, call.look[looks ? updates : 0].look,
                   entries, to, crew);
      if (!refines && !looks) {
        if (call.classify.labels != nullptr) {
          constexpr uint32_t vectors = Plan::query;  // behind 64 entries, if they are so many
          class_vectors<Plan::channels / 16>(s, call.hyper, shared.hidden, vectors, crew, barrier);
          if (!tile.empty()) {
            label_tile(tile, call.classify, image(), vectors);
          }
        }
        break;
      }
      barrier.meet();
      load_rows<Plan>(call, scratch(), updates);
      copy_wait<0>();
      if (updates == 0) {
        add_encoding(typename Plan::Pixels(), tile.here() + Plan::x, tile.here() + Plan::pe, tile.thread(), Plan::group);
      }
      Plan::Unit::fence();
      block_barrier();
      if (refines && !tile.empty()) {
        const bool wanted = updates == call.stages && call.refined != nullptr;
        tile.refine(call.refine[updates - 1], Entries{call.shape.heads, call.shape.entries}, call.shape.eps,
                    wanted ? const_cast<T*>(image_of(call.refined, image())) : nullptr);
        named_barrier_wait(1 + tile.group(), Plan::group);  // all four warps' pixels are there
      }
      if (!looks) {
        break;
      }
      OnlineSoftmax<T, Plan::pixels, Plan::channels> softmax;
      if (!tile.empty()) {
        tile.attend(softmax);
      }
      block_barrier();  // nobody needs key, value, query and the sum with the encoding any more
      if (updates < call.stages) {
        fetch_encoding();
      }
      const bool first = tile.group() == 0;
      first ? Halves<Plan, 0>::give(softmax) : Halves<Plan, 1>::give(softmax);
      block_barrier();
      const int rows = call.shape.heads * call.shape.entries, channels = call.shape.channels;
      const int64_t part = static_cast<int64_t>(worker) * rows;
      first ? Halves<Plan, 0>::take(softmax, scratch().parts, part, rows, channels)
            : Halves<Plan, 1>::take(softmax, scratch().parts, part, rows, channels);
      barrier.meet();
    }
  }
}

}  // namespace d2ls::cuda
