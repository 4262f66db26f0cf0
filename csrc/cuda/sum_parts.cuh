// The second stage of sums over pixels: what every block has summed put together, in order, several sums in one launch.
#pragma once

#include <initializer_list>

#include "cuda/device.h"
#include "cuda/instructions/shared.cuh"
#include "cuda/instructions/sync.cuh"

namespace d2ls::cuda {

// to [groups, size] = the sum over `count` of parts [groups, count, stride], of which a sum takes `size` numbers.
struct Sum {
  const float* parts;
  float* to;
  int64_t groups, count;
  int size;
};

struct SumArguments {
  Sum sums[5];
  int64_t stride;
};

// A block sums 32 neighbouring numbers; its warps take turns with the parts and read whole lines.
constexpr int sum_columns = 32, sum_warps = 8, sum_threads = sum_columns * sum_warps;
constexpr uint32_t sum_shared_bytes = sum_threads * sizeof(double);

D2LS_EITHER int64_t sum_blocks(const Sum& sum) { return sum.groups * ((sum.size + sum_columns - 1) / sum_columns); }

static D2LS_KERNEL(sum_threads, 1) sum_parts_kernel(SumArguments a) {
  int64_t block = block_index();
  int which = 0;
  for (; block >= sum_blocks(a.sums[which]); ++which) {
    block -= sum_blocks(a.sums[which]);
  }
  const Sum own = a.sums[which];
  const int columns = (own.size + sum_columns - 1) / sum_columns, warp = thread_index() / 32;
  const int64_t group = block / columns;
  const int column = static_cast<int>(block % columns) * sum_columns + thread_index() % 32;
  double sum = 0;  // so that counts of pixels stay exact beyond 2^24
  if (column < own.size) {
    for (int64_t part = warp; part < own.count; part += sum_warps) {
      sum += own.parts[(group * own.count + part) * a.stride + column];
    }
  }
  store_shared(8 * thread_index(), sum);
  block_barrier();
  if (warp == 0 && column < own.size) {
    for (int other = 1; other < sum_warps; ++other) {
      sum += load_shared<double>(8 * (other * 32 + thread_index()));
    }
    own.to[group * own.size + column] = static_cast<float>(sum);
  }
}

inline Error sum_parts(const Device& device, int64_t stride, std::initializer_list<Sum> sums) {
  SumArguments arguments{{}, stride};
  int64_t blocks = 0;
  int count = 0;
  for (const Sum& sum : sums) {
    arguments.sums[count++] = sum;
    blocks += sum_blocks(sum);
  }
  return launch(device, sum_parts_kernel, blocks, sum_threads, sum_shared_bytes, arguments);
}

}  // namespace d2ls::cuda
