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
