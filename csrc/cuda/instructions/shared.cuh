// Shared memory. An address is the offset from the start of the block's dynamic shared memory, which is 1024-aligned.
#pragma once

#include <cstring>

#include "cuda/instructions/device.cuh"

namespace d2ls::cuda {

struct alignas(16) Words {
  uint32_t word[4];
};

#ifdef __CUDACC__
extern __shared__ __align__(1024) unsigned char shared_memory[];

// As PTX wants it.
D2LS_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)) + offset;
}
#endif

// The value, which the compiler may not compute earlier than here. Without it every address that follows from it by adding
// a constant is computed before the loop over pixels and held in a register, though instructions add constants for free.
template <class Integer>
D2LS_DEVICE Integer from_here(Integer value) {
#ifdef __CUDACC__
  asm volatile("mov.b32 %0, %0;\n" : "+r"(value));
#endif
  return value;
}

template <class T>
D2LS_DEVICE T load_shared(uint32_t offset) {
#ifdef __CUDACC__
  return *reinterpret_cast<const T*>(shared_memory + offset);
#else
  T value;
  std::memcpy(&value, emulator::shared(offset, sizeof(T)), sizeof(T));
  return value;
#endif
}

template <class T>
D2LS_DEVICE void store_shared(uint32_t offset, const T& value) {
#ifdef __CUDACC__
  *reinterpret_cast<T*>(shared_memory + offset) = value;
#else
  std::memcpy(emulator::shared(offset, sizeof(T)), &value, sizeof(T));
  emulator::written(offset);
#endif
}

}  // namespace d2ls::cuda
