// What tells the GPU from its emulator: kernels are written once, against the wrappers in this folder.
//
// nvcc compiles them to inline PTX; any other compiler to the emulation in ../emulator. No header of torch is used, nor any
// of CUTLASS: a dozen instructions are all that is needed, and so few can be emulated, which shows without a GPU that the
// kernels are right. CUTLASS's templates would hide them.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#define D2LS_DEVICE __device__ __forceinline__
#define D2LS_EITHER __host__ __device__ __forceinline__
#define D2LS_KERNEL(THREADS, BLOCKS) __global__ void __launch_bounds__(THREADS, BLOCKS)
#define D2LS_UNROLL _Pragma("unroll")
#define D2LS_NO_UNROLL _Pragma("unroll 1")
#define D2LS_UNROLL_TWICE _Pragma("unroll 2")
#define D2LS_UNROLL_EIGHT _Pragma("unroll 8")
#define D2LS_UNROLL_SIXTEEN _Pragma("unroll 16")
#else
#include "cuda/emulator/block.h"
#define D2LS_DEVICE inline
#define D2LS_EITHER inline
#define D2LS_KERNEL(THREADS, BLOCKS) void
#define D2LS_UNROLL
#define D2LS_NO_UNROLL
#define D2LS_UNROLL_TWICE
#define D2LS_UNROLL_EIGHT
#define D2LS_UNROLL_SIXTEEN
#endif

namespace d2ls::cuda {

// Kinds of GPU that differ in what a kernel is made of. Shared memory is the most that one block can have.
struct Ampere {
  static constexpr int major = 8;
  static constexpr bool warpgroup_products = false;
  static constexpr bool large_shared_memory = false;
};
struct Hopper {
  static constexpr int major = 9;
  static constexpr bool warpgroup_products = true;  // wgmma
  static constexpr bool large_shared_memory = true;  // 227 KB, not 163
};
struct Blackwell {
  static constexpr int major = 10;
  static constexpr bool warpgroup_products = false;  // wgmma is Hopper's alone; its own tcgen05 is not used yet
  static constexpr bool large_shared_memory = true;
};

// Whether a kernel for this kind of GPU is to be compiled in this pass of nvcc; all others stay empty.
template <class Architecture>
D2LS_DEVICE constexpr bool compiled_here() {
#ifdef __CUDA_ARCH__
  return Architecture::major == __CUDA_ARCH__ / 100;
#else
  return true;
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "Hopper's kernels use wgmma: ask for 9.0a, not 9.0, in TORCH_CUDA_ARCH_LIST"
#endif

D2LS_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

D2LS_DEVICE int thread_index() {
#ifdef __CUDACC__
  return static_cast<int>(threadIdx.x);
#else
  return emulator::self->index;
#endif
}

D2LS_DEVICE int64_t block_index() {
#ifdef __CUDACC__
  return blockIdx.x;
#else
  return emulator::block->index;
#endif
}

}  // namespace d2ls::cuda
