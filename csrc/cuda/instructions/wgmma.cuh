// Asynchronous matrix products of four warps (wgmma), on Hopper.
//
// D[64][N] += A[64][16] B[16][N]. D lies in the lanes as the D of mma.sync does, warp w holding rows 16 w to 16 w + 15,
// and so does an A that is given in registers. Factors in shared memory are named by a descriptor.
#pragma once

#include "cuda/instructions/numbers.cuh"
#include "cuda/instructions/shared.cuh"
#ifndef __CUDACC__
#include "cuda/emulator/wgmma.h"
#endif

namespace d2ls::cuda {

// Of a matrix in panels of 128 bytes with the 128-byte swizzle, whose groups of eight 128-byte rows follow each other:
// bits 0-13 the address / 16, 32-45 the step from one group to the next / 16, 62-63 the kind of swizzle. The step between
// panels (bits 16-29) is not used, as no product here reaches beyond a panel.
D2LS_DEVICE uint64_t descriptor(uint32_t offset) {
#ifdef __CUDACC__
  const uint32_t address = shared_address(offset);
#else
  const uint32_t address = offset;
#endif
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// Before the first product after registers of D or A were written.
D2LS_DEVICE void products_begin() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#else
  emulator::products_begin();
#endif
}

D2LS_DEVICE void products_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#else
  emulator::products_commit();
#endif
}

// Waits until at most GROUPS committed groups are under way.
template <int GROUPS>
D2LS_DEVICE void products_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(GROUPS) : "memory");
#else
  emulator::products_wait(GROUPS);
#endif
}

// Keeps the compiler from moving reads or writes of registers across this place: it does not know that products run on.
template <int TILES>
D2LS_DEVICE void hold(float (&d)[TILES][4]) {
#ifdef __CUDACC__
  D2LS_UNROLL
  for (int i = 0; i < TILES; ++i) {
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
  }
#endif
}

#ifdef __CUDACC__
#define D2LS_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define D2LS_D16 D2LS_D4(0), D2LS_D4(1), D2LS_D4(2), D2LS_D4(3)
#define D2LS_D32 D2LS_D16, D2LS_D4(4), D2LS_D4(5), D2LS_D4(6), D2LS_D4(7)
#define D2LS_NAMES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define D2LS_NAMES32 D2LS_NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D2LS_TYPES(type) "k16.f32." type "." type " "

#define D2LS_WGMMA_SHARED(N, COUNT, A, B, type)                                                                     \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" N D2LS_TYPES(type) "{" D2LS_NAMES##COUNT "}, " A ", " B          \
               ", 1, 1, 1, 0, 0;\n"                                                                                 \
               : D2LS_D##COUNT                                                                                      \
               : "l"(a), "l"(b))
#define D2LS_WGMMA_REGISTERS(TRANSPOSED, type)                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64" D2LS_TYPES(type) "{" D2LS_NAMES32 "}, {%32,%33,%34,%35}, %36"  \
               ", 1, 1, 1, " TRANSPOSED ";\n"                                                                       \
               : D2LS_D32                                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#endif

// A and B in shared memory, both with the 16 contiguous; N = 8 TILES.
template <class T, int TILES>
D2LS_DEVICE void warpgroup_multiply(float (&d)[TILES][4], uint64_t a, uint64_t b) {
  static_assert(TILES == 4 || TILES == 8);
#ifdef __CUDACC__
  if constexpr (TILES == 4) {
    if constexpr (is_bf16<T>) {
      D2LS_WGMMA_SHARED("32", 16, "%16", "%17", "bf16");
    } else {
      D2LS_WGMMA_SHARED("32", 16, "%16", "%17", "f16");
    }
  } else if constexpr (is_bf16<T>) {
    D2LS_WGMMA_SHARED("64", 32, "%32", "%33", "bf16");
  } else {
    D2LS_WGMMA_SHARED("64", 32, "%32", "%33", "f16");
  }
#else
  emulator::warpgroup_multiply<T>(&d[0][0], TILES, nullptr, a, b, false);
#endif
}

// A in registers, B in shared memory with the 16 contiguous or, TRANSPOSED, with the 64 columns contiguous.
template <class T, bool TRANSPOSED>
D2LS_DEVICE void warpgroup_multiply(float (*d)[4], const uint32_t (&a)[4], uint64_t b) {
#ifdef __CUDACC__
  if constexpr (is_bf16<T> && TRANSPOSED) {
    D2LS_WGMMA_REGISTERS("1", "bf16");
  } else if constexpr (is_bf16<T>) {
    D2LS_WGMMA_REGISTERS("0", "bf16");
  } else if constexpr (TRANSPOSED) {
    D2LS_WGMMA_REGISTERS("1", "f16");
  } else {
    D2LS_WGMMA_REGISTERS("0", "f16");
  }
#else
  emulator::warpgroup_multiply<T>(d[0], 8, a, 0, b, TRANSPOSED);
#endif
}

}  // namespace d2ls::cuda
