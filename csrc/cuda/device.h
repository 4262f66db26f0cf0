// What launchers know of the device, and how they launch. Host code, free of torch.
#pragma once

#include <cstdint>
#include <string>

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#else
#include "cuda/emulator/grid.h"
#endif

namespace d2ls::cuda {

struct Device {
  int major;            // of the compute capability
  int multiprocessors;  // grids are sized to fill them, and so is the number of partial results
#ifdef __CUDACC__
  cudaStream_t stream;
#else
  emulator::Order order;
#endif
};

// What went wrong, or nothing.
using Error = std::string;

enum class Type { f32, tf32, bf16, f16 };  // tf32: float32 numbers whose products may be rounded

// Runs `kernel` with `arguments` on `blocks` blocks.
template <class Arguments>
Error launch(const Device& device, void (*kernel)(Arguments), int64_t blocks, int threads, uint32_t shared_bytes,
             Arguments arguments) {
#ifdef __CUDACC__
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    void* list[] = {&arguments};
    status = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                              dim3(static_cast<unsigned>(threads)), list, shared_bytes, device.stream);
  }
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
#else
  return emulator::run(device.order, blocks, threads, shared_bytes, [&] { kernel(arguments); });
#endif
}

// The same, all blocks at once, so that they can wait for each other; the device refuses more than it has room for.
template <class Arguments>
Error launch_together(const Device& device, void (*kernel)(Arguments), int64_t blocks, int threads,
                      uint32_t shared_bytes, Arguments arguments) {
#ifdef __CUDACC__
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    void* list[] = {&arguments};
    status = cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                         dim3(static_cast<unsigned>(threads)), list, shared_bytes, device.stream);
  }
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
#else
  return emulator::run_together(device.order, blocks, device.multiprocessors, threads, shared_bytes,
                                [&] { kernel(arguments); });
#endif
}

// How many blocks of `kernel` the device runs at once.
template <class Arguments>
Error room_for(const Device& device, void (*kernel)(Arguments), int threads, uint32_t shared_bytes, int64_t* blocks) {
#ifdef __CUDACC__
  int each = 0;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes);
  }
  *blocks = static_cast<int64_t>(each) * device.multiprocessors;
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
#else
  static_cast<void>(kernel);
  static_cast<void>(threads);
  static_cast<void>(shared_bytes);
  *blocks = device.multiprocessors;
  return "";
#endif
}

inline int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Zeros, in the stream's order.
inline Error clear(const Device& device, void* memory, size_t bytes) {
#ifdef __CUDACC__
  const cudaError_t status = cudaMemsetAsync(memory, 0, bytes, device.stream);
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
#else
  std::memset(memory, 0, bytes);
  return "";
#endif
}

// How the pixels of an image are cut: into chunks of whole tiles, so many that `groups` x chunks blocks fill the device
// once. From shapes and the device alone, so that results repeat bit for bit.
struct Split {
  int chunks;
  int tiles_per_chunk;
};

inline Split split(int64_t pixels, int tile_pixels, int64_t groups, int64_t device_blocks) {
  const int64_t tiles = (pixels + tile_pixels - 1) / tile_pixels;
  // A chunk of fewer than 128 pixels would write more partial results than it reads pixels.
  const int64_t fewest = (128 + tile_pixels - 1) / tile_pixels;
  const int64_t wanted = device_blocks / groups > 1 ? device_blocks / groups : 1;
  const int64_t per_chunk = (tiles + wanted - 1) / wanted > fewest ? (tiles + wanted - 1) / wanted : fewest;
  return {static_cast<int>((tiles + per_chunk - 1) / per_chunk), static_cast<int>(per_chunk)};
}

}  // namespace d2ls::cuda
