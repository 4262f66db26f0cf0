// What the functions that tests call have in common.
#pragma once

#include <cstring>
#include <string>
#include <vector>

namespace d2ls::cuda::emulator {

// The error as C has it: lives until the next call; null is success.
inline const char* told(const std::string& error) {
  static std::string kept;
  kept = error;
  return kept.empty() ? nullptr : kept.c_str();
}

// Scratch memory, which starts as NaN.
inline std::vector<float> poisoned(int64_t floats) {
  std::vector<float> memory(floats);
  std::memset(memory.data(), 0xff, floats * sizeof(float));
  return memory;
}

}  // namespace d2ls::cuda::emulator
