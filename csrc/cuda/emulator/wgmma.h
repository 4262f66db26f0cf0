// wgmma on the CPU, from the descriptors and fragment layouts of the PTX ISA.
#pragma once

#include "cuda/emulator/block.h"
#include "cuda/emulator/numbers.h"

namespace d2ls::cuda::emulator {

inline Warpgroup& warpgroup() { return block->warpgroups[self->index / 128]; }

template <class Action>
void meet_warpgroup(const char* what, void* argument, const Action& action) {
  meet(warpgroup().meeting, self->index % 128, 128, what, argument, action);
}

inline void products_begin() {
  meet_warpgroup("wgmma.fence", nullptr, [](void**) { warpgroup().fenced = true; });
}

inline void products_commit() {
  meet_warpgroup("wgmma.commit_group", nullptr, [](void**) { warpgroup().products.emplace_back(); });
}

inline void products_wait(int groups) {
  meet_warpgroup("wgmma.wait_group", nullptr, [groups](void**) {
    auto& products = warpgroup().products;
    while (static_cast<int>(products.size()) - 1 > groups) {
      for (const auto& product : products.front()) {
        product();
      }
      products.erase(products.begin());
    }
    warpgroup().fenced = false;  // registers may be written from here on
  });
}

// The 16-bit number in 128-byte row `row` and column `column` of what a descriptor names.
inline uint16_t element(uint64_t descriptor, int row, int column) {
  const uint32_t start = (descriptor & 0x3fff) << 4, step = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || column >= 64) {
    fail("descriptor %llx is not that of a panel with 128-byte swizzle", static_cast<unsigned long long>(descriptor));
  }
  uint32_t address = start + row / 8 * step + row % 8 * 128 + column * 2;
  address ^= (address >> 7 & 7) << 4;
  if (block->writer[address / 16] >= 0) {
    fail("wgmma reads shared memory at %u, which thread %d wrote and did not fence", address,
         block->writer[address / 16]);
  }
  uint16_t bits;
  std::memcpy(&bits, shared(address, 2), 2);
  return bits;
}

struct WarpgroupProduct {
  float* d;           // [tiles][4]
  const uint32_t* a;  // null: A in shared memory
};

// `from` turns bits into a number.
inline void warpgroup_product(const WarpgroupProduct* lanes, int tiles, uint64_t a, uint64_t b, bool transposed,
                              float (*from)(uint16_t)) {
  static float left[64][16], right[16][64];
  for (int n = 0; n < 8 * tiles; ++n) {
    for (int k = 0; k < 16; ++k) {
      right[k][n] = from(transposed ? element(b, k, n) : element(b, n, k));
    }
  }
  for (int thread = 0; thread < 128; ++thread) {
    const int g = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
      const uint32_t* words = lanes[thread].a;
      left[row][column] = from(words ? static_cast<uint16_t>(words[i]) : element(a, row, column));
      left[row][column + 1] = from(words ? static_cast<uint16_t>(words[i] >> 16) : element(a, row, column + 1));
    }
  }
  for (int thread = 0; thread < 128; ++thread) {
    const int g = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
    for (int i = 0; i < 4 * tiles; ++i) {
      const int row = g + i % 4 / 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        sum += left[row][k] * right[k][column];
      }
      lanes[thread].d[i] += sum;
    }
  }
}

template <class T>
void warpgroup_multiply(float* d, int tiles, const uint32_t* a, uint64_t a_descriptor, uint64_t b, bool transposed) {
  WarpgroupProduct mine{d, a};
  meet_warpgroup("wgmma", &mine, [&](void** all) {
    Warpgroup& group = warpgroup();
    if (!group.fenced) {
      fail("wgmma without wgmma.fence since the last wait");
    }
    std::vector<WarpgroupProduct> lanes;
    for (int i = 0; i < 128; ++i) {
      lanes.push_back(*static_cast<const WarpgroupProduct*>(all[i]));
    }
    const auto product = [=] { warpgroup_product(lanes.data(), tiles, a_descriptor, b, transposed, T::number); };
    if (block->order.early) {
      product();
    } else {
      group.products.back().push_back(product);
    }
  });
}

}  // namespace d2ls::cuda::emulator
