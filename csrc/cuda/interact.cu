// The launches of interact.
#include "cuda/interact.h"

#include "cuda/interact.cuh"

namespace d2ls::cuda {

namespace {

// How a batch is spread: blocks to an image, images at once.
struct Wave {
  int blocks;
  int64_t images;
};

// f(plan, architecture), or why there is no kernel for the call.
template <class F>
Error by_plan(const Device& device, const InteractCall& call, const F& f) {
  if (call.type != Type::bf16 && call.type != Type::f16) {
    return "the resident kernel takes bfloat16 and float16 pixels";
  }
  if (device.major != 9 && device.major != 10) {
    return "the resident kernel needs 227 KB of shared memory, which compute capability 9 and 10 have; this device has " +
           std::to_string(device.major);
  }
  return dispatch(call.type, device.major, call.shape.channels, [&](auto kind, auto architecture, auto channels) -> Error {
    using Kind = decltype(kind);
    using Architecture = decltype(architecture);
    if constexpr (Architecture::large_shared_memory && sizeof(typename Kind::Number) == 2) {
      return f(InteractPlan<Kind, Architecture, channels>(), architecture);
    }
    return "";
  });
}

// Of a call that has a kernel: what is wrong with its widths, or nothing.
template <class Plan>
Error widths(const InteractCall& call, int blocks) {
  const StepShape& s = call.shape;
  const int rows = s.heads * s.entries;
  if (rows > Plan::rows || Entries{s.heads, s.entries}.blocks(Plan::rows) > 1) {
    return "the resident kernel takes up to " + std::to_string(Plan::rows) +
           " rows (heads x entries, entries rounded up to 8, 16, 32 or 64), got " + std::to_string(s.heads) + " x " +
           std::to_string(s.entries);
  }
  const uint32_t step[] = {mix_shared_bytes(s.channels, blocks), 4u * s.entries * s.inner, rows_shared_bytes(s)};
  for (const uint32_t bytes : step) {
    if (bytes > Plan::free_bytes) {
      return "the dictionary step takes " + std::to_string(bytes) + " bytes of shared memory, the resident kernel has " +
             std::to_string(Plan::free_bytes) + " for it";
    }
  }
  return "";
}

template <class Plan, class Architecture>
Error wave_of(const Device& device, const InteractCall& call, int64_t images, Wave* wave) {
  const int64_t blocks = (call.pixels + Plan::block_pixels - 1) / Plan::block_pixels;
  int64_t room = 0;
  const Error error = room_for(device, interact_kernel<Plan, Architecture>, Plan::threads, Plan::shared_bytes, &room);
  if (!error.empty()) {
    return error;
  }
  if (images * blocks > room) {
    return "images of " + std::to_string(call.pixels) + " pixels take " + std::to_string(blocks) + " blocks of " +
           std::to_string(Plan::block_pixels) + " pixels each (" + std::to_string(Plan::shared_bytes) +
           " bytes of shared memory a block), the device holds " + std::to_string(room) + " blocks at once, " +
           std::to_string(images * blocks) + " are needed";
  }
  *wave = {static_cast<int>(blocks), smaller_of(room / blocks, call.batch)};
  return widths<Plan>(call, wave->blocks);
}

// With `scratch` null only the size is found. At least `images` must fit at once.
Error run(const Device& device, const InteractCall& call, int64_t images, float* scratch, int64_t* floats) {
  if (const Error error = why_not(call.shape); !error.empty()) {
    return error;
  }
  if (call.stages < 1 || call.stages > most_stages || call.looks < call.stages || call.looks > call.stages + 1) {
    return "the resident kernel takes 1 to " + std::to_string(most_stages) +
           " stages and as many looks or one more, got " + std::to_string(call.stages) + " and " +
           std::to_string(call.looks);
  }
  if (call.classify.labels != nullptr && call.looks == call.stages) {
    return "the resident kernel makes labels after a last look only";
  }
  return by_plan(device, call, [&](auto plan, auto architecture) -> Error {
    using Plan = decltype(plan);
    using Architecture = decltype(architecture);
    Wave wave{};
    Error error = wave_of<Plan, Architecture>(device, call, images, &wave);
    if (!error.empty()) {
      return error;
    }
    const int64_t counters = call.batch * counter_words;
    const int64_t image_floats = ImageScratch<typename Plan::T>::floats(call.shape, wave.blocks);
    *floats = counters + wave.images * image_floats;
    if (scratch == nullptr) {
      return "";
    }
    error = clear(device, scratch, counters * sizeof(float));
    for (int64_t first = 0; first < call.batch && error.empty(); first += wave.images) {
      const InteractArguments arguments{call,         reinterpret_cast<uint32_t*>(scratch), scratch + counters, first,
                                        image_floats, wave.blocks};
      const int64_t here = smaller_of(wave.images, call.batch - first);
      error = launch_together(device, interact_kernel<Plan, Architecture>, here * wave.blocks, Plan::threads,
                              Plan::shared_bytes, arguments);
    }
    return error;
  });
}

}  // namespace

Error why_not(const Device& device, const InteractCall& call, int64_t images) {
  int64_t floats = 0;
  return run(device, call, images, nullptr, &floats);
}

int64_t interact_scratch(const Device& device, const InteractCall& call) {
  int64_t floats = 0;
  run(device, call, 1, nullptr, &floats);
  return floats;
}

Error interact(const Device& device, const InteractCall& call, float* scratch) {
  int64_t floats = 0;
  return run(device, call, 1, scratch, &floats);
}

}  // namespace d2ls::cuda
