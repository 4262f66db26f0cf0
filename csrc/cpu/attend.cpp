#include "cpu/attend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "cpu/isa.h"

namespace d2ls {
namespace {

constexpr int64_t kAlign = 64;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Cache-line aligned, uninitialised float32 memory.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(kAlign, round_up(std::max<int64_t>(floats, 1) * 4, kAlign)))) {
    if (data_ == nullptr) {
      throw std::bad_alloc();
    }
  }
  float* get() const { return data_.get(); }

  static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

 private:
  std::unique_ptr<float, Free> data_;
};

const AttendKernels& kernels() {
  static const AttendKernels chosen = [] {
#if defined(__x86_64__)
    if (isa() == Isa::avx512) return attend_kernels_avx512();
    if (isa() == Isa::avx2) return attend_kernels_avx2();
#endif
    return attend_kernels_portable();
  }();
  return chosen;
}

// How N pixels are cut: at least 256 pixels a chunk so that the partial results stay small beside the pixels, between
// 16 and 64 chunks otherwise.
struct Chunks {
  explicit Chunks(int64_t pixels) {
    const int64_t wanted = std::clamp<int64_t>(pixels / 1024, 16, 64);
    size = Buffer::round_up(std::max<int64_t>(256, (pixels + wanted - 1) / wanted), 64);
    count = (pixels + size - 1) / size;
    total = pixels;
  }
  AttendChunk operator()(int64_t task) const {
    const int64_t begin = task % count * size;
    return {task / count, begin, std::min(begin + size, total)};
  }
  int64_t size, count, total;
};

struct Padded {
  explicit Padded(const AttendShape& s)
      : rows(Buffer::round_up(s.rows, kernels().lanes)), channels(Buffer::round_up(s.channels, kernels().lanes)) {}
  int64_t rows, channels;
};

// matrix [J, C] -> transposed [C, Jp], zero where padded.
void transpose(const float* matrix, int64_t rows, int64_t channels, int64_t stride, int64_t padded_rows, float* out) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < padded_rows; ++j) {
      out[c * padded_rows + j] = j < rows ? matrix[j * stride + c] : 0.0f;
    }
  }
}

// A [J, C] matrix of batch entry b widened to float32 rows of length Cp, zero where padded.
void widen_rows(Dtype dtype, const void* src, int64_t b, const AttendShape& s, int64_t padded, float* out) {
  for (int64_t j = 0; j < s.rows; ++j) {
    kernels().widen(dtype, src, (b * s.rows + j) * s.channels, out + j * padded, s.channels);
    std::fill(out + j * padded + s.channels, out + (j + 1) * padded, 0.0f);
  }
}

}  // namespace

void attend_forward(const AttendForward& call, const Parallel& parallel) {
  const AttendShape& s = call.shape;
  const AttendKernels& k = kernels();
  const Padded p(s);
  const Chunks chunks(s.pixels);
  const int64_t tasks = s.batch * chunks.count;

  const int64_t packed_size = s.channels * p.rows;
  Buffer query_t(s.batch * packed_size);
  parallel(s.batch, 1, [&](int64_t begin, int64_t end) {
    Buffer query(s.rows * p.channels);
    for (int64_t b = begin; b < end; ++b) {
      widen_rows(s.dtype, call.query, b, s, p.channels, query.get());
      transpose(query.get(), s.rows, s.channels, p.channels, p.rows, query_t.get() + b * packed_size);
    }
  });

  const int64_t acc_size = s.rows * p.channels;
  Buffer acc(tasks * acc_size), row_max(tasks * p.rows), row_sum(tasks * p.rows);
  parallel(tasks, 1, [&](int64_t begin, int64_t end) {
    Buffer scratch(k.scratch(s) / 4);
    for (int64_t t = begin; t < end; ++t) {
      AttendPacked packed{};
      packed.query_t = query_t.get() + t / chunks.count * packed_size;
      k.forward(call, packed, chunks(t), acc.get() + t * acc_size, row_max.get() + t * p.rows,
                row_sum.get() + t * p.rows, scratch.get());
    }
  });

  parallel(s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / s.rows, j = r % s.rows, first = b * chunks.count;
      float top = -std::numeric_limits<float>::infinity();
      for (int64_t t = first; t < first + chunks.count; ++t) {
        top = std::max(top, row_max.get()[t * p.rows + j]);
      }
      float* context = call.context + r * s.channels;
      std::fill(context, context + s.channels, 0.0f);
      float sum = 0.0f;
      for (int64_t t = first; t < first + chunks.count; ++t) {
        const float scale = std::exp(row_max.get()[t * p.rows + j] - top);
        const float* part = acc.get() + t * acc_size + j * p.channels;
        sum += row_sum.get()[t * p.rows + j] * scale;
        for (int64_t c = 0; c < s.channels; ++c) {
          context[c] += part[c] * scale;
        }
      }
      for (int64_t c = 0; c < s.channels; ++c) {
        context[c] /= sum;
      }
      call.log_sum_exp[r] = top + std::log(sum);
    }
  });
}

void attend_backward(const AttendBackward& call, const Parallel& parallel) {
  const AttendShape& s = call.shape;
  const AttendKernels& k = kernels();
  const Padded p(s);
  const Chunks chunks(s.pixels);
  const int64_t tasks = s.batch * chunks.count;

  const int64_t transposed = s.channels * p.rows, straight = s.rows * p.channels;
  Buffer query_t(s.batch * transposed), grad_t(s.batch * transposed);
  Buffer query(s.batch * straight), grad(s.batch * straight);
  Buffer offset(s.batch * p.rows), lse(s.batch * p.rows);
  parallel(s.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* q = query.get() + b * straight;
      float* g = grad.get() + b * straight;
      widen_rows(s.dtype, call.query, b, s, p.channels, q);
      widen_rows(Dtype::f32, call.grad_context, b, s, p.channels, g);
      transpose(q, s.rows, s.channels, p.channels, p.rows, query_t.get() + b * transposed);
      transpose(g, s.rows, s.channels, p.channels, p.rows, grad_t.get() + b * transposed);
      for (int64_t j = 0; j < p.rows; ++j) {
        float dot = 0.0f;
        // Padded rows: an infinite normaliser makes their weights, and so their gradients, zero.
        float norm = std::numeric_limits<float>::infinity();
        if (j < s.rows) {
          const float* context = call.context + (b * s.rows + j) * s.channels;
          for (int64_t c = 0; c < s.channels; ++c) {
            dot += g[j * p.channels + c] * context[c];
          }
          dot -= call.grad_log_sum_exp[b * s.rows + j];
          norm = call.log_sum_exp[b * s.rows + j];
        }
        offset.get()[b * p.rows + j] = dot;
        lse.get()[b * p.rows + j] = norm;
      }
    }
  });

  // The gradient of a shared positional encoding is a sum over the batch, so it waits in float32 until all are done.
  Buffer through_scores(call.grad_pe != nullptr ? s.batch * s.pixels * s.channels : 0);
  Buffer partial(tasks * straight);
  parallel(tasks, 1, [&](int64_t begin, int64_t end) {
    Buffer scratch(k.scratch(s) / 4);
    for (int64_t t = begin; t < end; ++t) {
      const AttendChunk chunk = chunks(t);
      const int64_t b = chunk.batch;
      const AttendPacked packed{query_t.get() + b * transposed, query.get() + b * straight,
                                grad_t.get() + b * transposed,  grad.get() + b * straight,
                                offset.get() + b * p.rows,      lse.get() + b * p.rows};
      float* through = call.grad_pe != nullptr ? through_scores.get() + b * s.pixels * s.channels : nullptr;
      k.backward(call, packed, chunk, partial.get() + t * straight, through, scratch.get());
    }
  });

  parallel(s.batch * s.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t b = r / s.rows, j = r % s.rows, first = b * chunks.count;
      float* sum = partial.get() + first * straight + j * p.channels;
      for (int64_t t = 1; t < chunks.count; ++t) {
        for (int64_t c = 0; c < s.channels; ++c) {
          sum[c] += sum[t * straight + c];
        }
      }
      k.narrow(s.dtype, sum, call.grad_query, r * s.channels, s.channels);
    }
  });

  if (call.grad_pe != nullptr) {
    parallel(s.pixels, 64, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * s.channels, count = (end - begin) * s.channels, image = s.pixels * s.channels;
      float* base = through_scores.get() + first;
      if (s.shared_pe) {
        for (int64_t b = 1; b < s.batch; ++b) {
          for (int64_t i = 0; i < count; ++i) {
            base[i] += base[b * image + i];
          }
        }
        k.narrow(s.dtype, base, call.grad_pe, first, count);
      } else {
        for (int64_t b = 0; b < s.batch; ++b) {
          k.narrow(s.dtype, base + b * image, call.grad_pe, b * image + first, count);
        }
      }
    });
  }
}

}  // namespace d2ls
