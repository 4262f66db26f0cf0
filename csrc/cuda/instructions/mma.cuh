// Matrix products of one warp (mma.sync) and the loads that feed them (ldmatrix), for every kind of GPU.
//
// D[16][8] += A[16][K] B[K][8], with K = 16 (16-bit) or 8 (TF32). With g = lane / 4 and t = lane % 4, a lane holds
//   D: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   A, 16-bit pairs: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)     B: (2t.., g) (2t+8.., g)
//   A, TF32: (g, t) (g+8, t) (g, t+4) (g+8, t+4)                         B: (t, g) (t+4, g)
#pragma once

#include "cuda/instructions/numbers.cuh"
#include "cuda/instructions/shared.cuh"
#include "cuda/instructions/sync.cuh"
#ifndef __CUDACC__
#include "cuda/emulator/mma.h"
#endif

namespace d2ls::cuda {

// Four matrices of 8 x 8 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
D2LS_DEVICE void load_matrices(uint32_t (&words)[4], uint32_t row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulator::load_matrices(words, row, false);
#endif
}

// The same, each matrix transposed.
D2LS_DEVICE void load_matrices_transposed(uint32_t (&words)[4], uint32_t row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
#else
  emulator::load_matrices(words, row, true);
#endif
}

#ifdef __CUDACC__
#define D2LS_MMA(SHAPE_AND_TYPES)                                                                         \
  asm volatile("mma.sync.aligned." SHAPE_AND_TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#endif

// K = 16, numbers of type T.
template <class T>
D2LS_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
D2LS_DEVICE void multiply<Bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  D2LS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
#else
  emulator::multiply16(d, a, b0, b1, Bf16::number);
#endif
}

template <>
D2LS_DEVICE void multiply<Fp16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  D2LS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
#else
  emulator::multiply16(d, a, b0, b1, Fp16::number);
#endif
}

// K = 8, TF32.
D2LS_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  D2LS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  emulator::multiply8(d, a, b0, b1);
#endif
}

}  // namespace d2ls::cuda
