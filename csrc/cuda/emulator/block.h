// A block of GPU threads on the CPU: every thread is a fiber, and shared memory is an array.
//
// Kernels are compiled by an ordinary C++ compiler against this instead of a GPU, so that tests run their very sources.
// It is built to be unkind: shared memory starts as NaN, a warp runs ahead of the others as far as barriers let it, and
// asynchronous work is done as late as its wait allows (or as early as possible, if asked), so that a missing wait,
// fence or barrier gives wrong values or an error rather than luck.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulator/fiber.h"

namespace d2ls::cuda::emulator {

// How a run is to be unkind; tests go through all four combinations.
struct Order {
  bool early = false;       // asynchronous work is done when it is issued, not when it is waited for
  bool descending = false;  // the last warp runs ahead, not the first
};

// Threads that come to one place: the last to come does what is to be done for all.
struct Meeting {
  int arrived = 0;
  uint64_t generation = 0;
  const char* what = "";
  void* arguments[128] = {};
};

struct Copy {
  uint32_t to;
  const void* from;  // null: zeros
};

struct Thread {
  Fiber fiber;
  int index = 0;
  bool finished = false;
  const uint64_t* waits_for = nullptr;  // blocked until this is no longer waits_at
  uint64_t waits_at = 0;
  const char* waits_in = "";
  std::vector<std::vector<Copy>> copies{1};  // the last group is open
  std::vector<uint32_t> unfenced;            // 16-byte units that it wrote and did not fence
};

struct Warpgroup {
  Meeting meeting;
  std::vector<std::vector<std::function<void()>>> products{1};  // the last group is open
  bool fenced = false;
};

struct Block {
  Order order;
  int64_t index = 0;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  std::vector<Warpgroup> warpgroups;
  Meeting barriers[16];
  std::unique_ptr<uint8_t, void (*)(void*)> memory{nullptr, std::free};
  uint32_t memory_size = 0;
  std::vector<int> writer;  // of every 16-byte unit: the thread whose write the asynchronous proxy may not see yet, or -1
  Fiber scheduler;
  std::string error;
};

inline Block* block = nullptr;
inline Thread* self = nullptr;

// Back to the scheduler, for good: nothing of the block runs any more.
[[noreturn]] inline void fail(const char* format, ...) {
  char text[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  block->error = "block " + std::to_string(block->index) + ", thread " + std::to_string(self->index) + ": " + text;
  for (;;) {
    switch_fiber(self->fiber, block->scheduler);
  }
}

inline void wait_for(const uint64_t& generation, uint64_t value, const char* what) {
  self->waits_for = &generation;
  self->waits_at = value;
  self->waits_in = what;
  switch_fiber(self->fiber, block->scheduler);
}

// `count` threads meet; `position` is this thread's among them. They must all have come for the same thing.
template <class Action>
void meet(Meeting& meeting, int position, int count, const char* what, void* argument, const Action& action) {
  if (meeting.arrived > 0 && std::strcmp(meeting.what, what) != 0) {
    fail("meets at %s where others are at %s", what, meeting.what);
  }
  meeting.what = what;
  meeting.arguments[position] = argument;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.generation;
    action(meeting.arguments);
  } else {
    wait_for(meeting.generation, meeting.generation, what);
  }
}

template <class Action>
void meet_warp(const char* what, void* argument, const Action& action) {
  meet(block->warps[self->index / 32], self->index % 32, 32, what, argument, action);
}

inline uint8_t* shared(uint32_t offset, uint32_t size) {
  if (offset % size != 0 || offset + size > block->memory_size) {
    fail("%u bytes of shared memory at %u of %u", size, offset, block->memory_size);
  }
  return block->memory.get() + offset;
}

inline void written(uint32_t offset) {
  block->writer[offset / 16] = self->index;
  self->unfenced.push_back(offset / 16);
}

inline bool runnable(const Thread& thread) {
  return !thread.finished && (thread.waits_for == nullptr || *thread.waits_for != thread.waits_at);
}

// Runs the block as far as it comes, one warp at a time, each until all of its threads wait; whether it came any further.
inline bool advance(Block& one) {
  block = &one;
  const int warps = static_cast<int>(one.warps.size());
  bool moved = false;
  for (bool progress = true; progress && one.error.empty(); moved |= progress) {
    progress = false;
    for (int i = 0; i < warps; ++i) {
      Thread* first = &one.threads[(one.order.descending ? warps - 1 - i : i) * 32];
      for (bool ran = true; ran && one.error.empty();) {
        ran = false;
        for (Thread* thread = first; thread < first + 32 && one.error.empty(); ++thread) {
          if (runnable(*thread)) {
            self = thread;
            thread->waits_for = nullptr;
            switch_fiber(one.scheduler, thread->fiber);
            ran = progress = true;
          }
        }
      }
    }
  }
  block = nullptr;
  return moved;
}

// The error of a block that comes no further, or nothing if it has ended.
inline std::string ending(const Block& one) {
  for (const Thread& thread : one.threads) {
    if (one.error.empty() && !thread.finished) {
      return "block " + std::to_string(one.index) + ", thread " + std::to_string(thread.index) + ": waits forever in " +
             thread.waits_in;
    }
  }
  return one.error;
}

// What every thread does.
inline std::function<void()> body_of(const std::function<void()>& kernel) {
  return [&kernel] {
    kernel();
    self->finished = true;
    for (const auto& group : self->copies) {
      if (!group.empty()) {
        fail("ends with copies that nobody waited for");
      }
    }
    switch_fiber(self->fiber, block->scheduler);
  };
}

// A block before its first step; its fibers have the numbers from `first_fiber` on.
inline std::unique_ptr<Block> fresh(Order order, int64_t index, int threads, uint32_t shared_bytes, int first_fiber,
                                    const std::function<void()>& body) {
  auto one = std::make_unique<Block>();
  one->order = order;
  one->index = index;
  one->warps.resize(threads / 32);
  one->warpgroups.resize((threads + 127) / 128);
  one->memory.reset(static_cast<uint8_t*>(std::aligned_alloc(1024, (shared_bytes + 2047) / 1024 * 1024)));
  one->memory_size = shared_bytes;
  std::memset(one->memory.get(), 0xff, shared_bytes);
  one->writer.assign(shared_bytes / 16 + 1, -1);
  one->threads.resize(threads);
  for (int i = 0; i < threads; ++i) {
    one->threads[i].index = i;
    start_fiber(one->threads[i].fiber, first_fiber + i, &body);
  }
  return one;
}

// A launch: the error of the first block that fails, or nothing.
inline std::string run(Order order, int64_t blocks, int threads, uint32_t shared_bytes,
                       const std::function<void()>& kernel) {
  const std::function<void()> body = body_of(kernel);
  for (int64_t index = 0; index < blocks; ++index) {
    const auto one = fresh(order, index, threads, shared_bytes, 0, body);
    advance(*one);
    const std::string error = ending(*one);
    if (!error.empty()) {
      return error;
    }
  }
  return "";
}

}  // namespace d2ls::cuda::emulator
