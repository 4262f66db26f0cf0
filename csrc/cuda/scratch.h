// Scratch memory of launchers that need several pieces of it, and launches one after the other.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// Hands out pieces of one memory; with none it only counts.
class Scratch {
 public:
  explicit Scratch(float* memory) : memory_(memory) {}

  float* take(int64_t floats) {
    const int64_t at = used_;
    used_ += (floats + 3) / 4 * 4;  // copies want multiples of 16 bytes
    return memory_ == nullptr ? nullptr : memory_ + at;
  }
  // Numbers of a type.
  void* take(int64_t numbers, Type type) {
    const bool half = type == Type::bf16 || type == Type::f16;
    return take(half ? (numbers + 1) / 2 : numbers);
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

// Makes the calls in turn until one fails.
template <class... Calls>
Error in_turn(const Calls&... calls) {
  Error error;
  (void)((error = calls(), error.empty()) && ...);
  return error;
}

}  // namespace d2ls::cuda
