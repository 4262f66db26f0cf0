// ldmatrix and mma.sync on the CPU, from the fragment layouts of the PTX ISA (the comment in ../instructions/mma.cuh).
#pragma once

#include "cuda/emulator/block.h"
#include "cuda/emulator/numbers.h"

namespace d2ls::cuda::emulator {

inline void load_matrices(uint32_t (&words)[4], uint32_t row, bool transposed) {
  struct Load {
    uint32_t* words;
    uint32_t row;
    bool transposed;
  } load{words, row, transposed};
  meet_warp("ldmatrix", &load, [](void** all) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t values[8][8];
      for (int r = 0; r < 8; ++r) {
        const auto* from = static_cast<const Load*>(all[matrix * 8 + r]);
        std::memcpy(values[r], shared(from->row, 16), 16);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const auto* to = static_cast<const Load*>(all[lane]);
        const int r = lane / 4, c = lane % 4 * 2;
        const uint32_t low = to->transposed ? values[c][r] : values[r][c];
        const uint32_t high = to->transposed ? values[c + 1][r] : values[r][c + 1];
        to->words[matrix] = low | high << 16;
      }
    }
  });
}

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// D += A B with A [16][K] and B [K][8] put together from what the lanes hold.
template <int K>
void add_product(void** all, const float (&a)[16][K], const float (&b)[K][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    float* d = static_cast<const Product*>(all[lane])->d;
    for (int i = 0; i < 4; ++i) {
      float sum = 0;
      for (int k = 0; k < K; ++k) {
        sum += a[g + i / 2 * 8][k] * b[k][2 * t + i % 2];
      }
      d[i] += sum;
    }
  }
}

inline void multiply16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*from)(uint16_t)) {
  Product mine{d, a, {b0, b1}};
  meet_warp("mma", &mine, [from](void** all) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto* product = static_cast<const Product*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][2 * t + i / 2 * 8] = from(static_cast<uint16_t>(product->a[i]));
        a[g + i % 2 * 8][2 * t + i / 2 * 8 + 1] = from(static_cast<uint16_t>(product->a[i] >> 16));
      }
      for (int i = 0; i < 2; ++i) {
        b[2 * t + 8 * i][g] = from(static_cast<uint16_t>(product->b[i]));
        b[2 * t + 8 * i + 1][g] = from(static_cast<uint16_t>(product->b[i] >> 16));
      }
    }
    add_product(all, a, b);
  });
}

// The hardware reads the upper 19 bits of a TF32 number.
inline void multiply8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product mine{d, a, {b0, b1}};
  meet_warp("mma tf32", &mine, [](void** all) {
    float a[16][8], b[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto* product = static_cast<const Product*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][t + i / 2 * 4] = word_as_float(product->a[i] & 0xffffe000u);
      }
      for (int i = 0; i < 2; ++i) {
        b[t + 4 * i][g] = word_as_float(product->b[i] & 0xffffe000u);
      }
    }
    add_product(all, a, b);
  });
}

}  // namespace d2ls::cuda::emulator
