#include "cpu/pyramid.h"

#include <algorithm>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/pyramid_host.h"
#include "cpu/pyramid_taps.h"

namespace d2ls {
namespace {

// Pixels of a coarse level in one task of the forward, and channels of a task of the backward.
constexpr int64_t kTaskPixels = 48;
constexpr int64_t kTaskChannels = 128;
// Fine pixels that a band of the gather should span: its rows then stay in the second-level cache.
constexpr int64_t kBandPixels = 2048;

const PyramidKernels& kernels() { return chosen_kernels().pyramid; }

struct Task {
  int64_t level;
  PyramidPart part;
};

std::vector<Task> product_tasks(const PyramidInputs& in) {
  std::vector<Task> tasks;
  // The coarsest level first: its tasks are the longest.
  for (int64_t i = static_cast<int64_t>(in.levels.size()) - 1; i > 0; --i) {
    const PyramidLevel& level = in.levels[i];
    for (int64_t b = 0; b < in.batch; ++b) {
      for (int64_t n = 0; n < level.pixels(); n += kTaskPixels) {
        tasks.push_back({i, {b, n, std::min(n + kTaskPixels, level.pixels()), 0, level.channels}});
      }
    }
  }
  return tasks;
}

// Chunks of pixels times blocks of channels of every level; a block's chunks follow each other, for sums in their order.
std::vector<Task> gradient_tasks(const PyramidInputs& in) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < in.levels.size(); ++i) {
    const PyramidLevel& level = in.levels[i];
    const Chunks chunks(in.batch, level.pixels());
    for (int64_t c = 0; c < level.channels; c += kTaskChannels) {
      for (int64_t t = 0; t < chunks.count; ++t) {
        const Chunk chunk = chunks[t];
        const int64_t last = std::min(c + kTaskChannels, level.channels);
        tasks.push_back({static_cast<int64_t>(i), {chunk.batch, chunk.begin, chunk.end, c, last}});
      }
    }
  }
  return tasks;
}

void gather_coarse(const PyramidInputs& in, const PyramidShape& shape, const void* grad_fused, CoarseMaps* coarse,
                   const Parallel& parallel) {
  std::vector<std::unique_ptr<PyramidGathers>> tables;
  for (PyramidCoarse& level : coarse->levels) {
    tables.push_back(std::make_unique<PyramidGathers>(level.height, shape.height));
    level.row_gathers = tables.back()->data();
    tables.push_back(std::make_unique<PyramidGathers>(level.width, shape.width));
    level.column_gathers = tables.back()->data();
  }
  const PyramidCoarse* levels = coarse->levels.data();
  const int64_t bands = std::max<int64_t>(1, shape.height * shape.width / kBandPixels);
  const int64_t blocks = round_up(shape.padded, kernels().gather_channels) / kernels().gather_channels;
  int64_t rows = 0;
  if (in.dtype != Dtype::f32 || shape.padded != shape.channels) {
    for (int64_t band = 0; band < bands; ++band) {
      const PyramidRows span = pyramid_band_rows(levels, coarse->count(), band, bands);
      rows = std::max(rows, span.end - span.begin);
    }
  }
  parallel(in.batch * blocks * bands, 1, [&](int64_t begin, int64_t end) {
    const Buffer widened(rows * shape.width * kernels().gather_channels);
    for (int64_t t = begin; t < end; ++t) {
      kernels().gather(shape, grad_fused, levels, coarse->count(), t / (blocks * bands),
                       t / bands % blocks * kernels().gather_channels, t % bands, bands,
                       rows > 0 ? widened.get() : nullptr);
    }
  });
}

}  // namespace

void pyramid_forward(const PyramidInputs& in, const float* bias, void* fused, const Parallel& parallel) {
  const PyramidShape shape = pyramid_shape(in);
  const PyramidWeights weights(in, shape, true, parallel);
  const int64_t scratch_floats = pyramid_scratch(in, shape);
  CoarseMaps coarse(in, shape);
  const std::vector<Task> tasks = product_tasks(in);
  const int64_t count = tasks.size();
  parallel_tasks(parallel, count, [&](const Next& next) {
    const Buffer scratch(scratch_floats);
    for (int64_t t = next(); t < count; t = next()) {
      const int64_t i = tasks[t].level;
      kernels().multiply(shape, in.levels[i], weights[i], tasks[t].part, coarse.levels[i - 1].product, scratch.get());
    }
  });

  std::vector<std::vector<PyramidTap>> taps;
  for (PyramidCoarse& level : coarse.levels) {
    taps.push_back(pyramid_taps(level.height, shape.height));
    level.rows = taps.back().data();
    taps.push_back(pyramid_taps(level.width, shape.width));
    level.columns = taps.back().data();
  }
  const Buffer padded_bias(shape.padded);
  std::fill(std::copy(bias, bias + in.channels, padded_bias.get()), padded_bias.get() + shape.padded, 0.0f);
  const PyramidLevel& finest = in.levels.front();
  const Chunks chunks(in.batch, finest.pixels());
  for_chunks(chunks, scratch_floats, parallel, [&](Chunk chunk, int64_t, float* scratch) {
    kernels().sum(shape, finest, weights[0], padded_bias.get(), coarse.levels.data(), coarse.count(),
                  {chunk.batch, chunk.begin, chunk.end, 0, finest.channels}, fused, scratch);
  });
}

void pyramid_backward(const PyramidInputs& in, const void* grad_fused, float* grad_bias, const Parallel& parallel) {
  const PyramidShape shape = pyramid_shape(in);
  CoarseMaps coarse(in, shape);
  gather_coarse(in, shape, grad_fused, &coarse, parallel);

  const PyramidWeights weights(in, shape, false, parallel);
  const std::vector<Task> tasks = gradient_tasks(in);
  std::vector<int64_t> starts{0};  // of the tasks' partial gradients: the channels of the part, and one row for the bias
  for (const Task& task : tasks) {
    starts.push_back(starts.back() + (task.part.last_channel - task.part.first_channel + 1) * shape.padded);
  }
  const Buffer partials(starts.back());
  const int64_t scratch_floats = pyramid_scratch(in, shape);
  const int64_t count = tasks.size();
  parallel_tasks(parallel, count, [&](const Next& next) {
    const Buffer scratch(scratch_floats);
    for (int64_t t = next(); t < count; t = next()) {
      const PyramidPart& part = tasks[t].part;
      const int64_t i = tasks[t].level;
      float* partial = partials.get() + starts[t];
      float* bias = partial + (part.last_channel - part.first_channel) * shape.padded;
      kernels().backward(shape, in.levels[i], weights[i], grad_fused, i == 0 ? nullptr : coarse.levels[i - 1].product,
                         part, partial, i == 0 && part.first_channel == 0 ? bias : nullptr, scratch.get());
    }
  });

  // The tasks of a block of channels follow each other: the first takes the sum.
  std::vector<int64_t> firsts;
  for (int64_t t = 0; t < static_cast<int64_t>(tasks.size()); ++t) {
    if (t == 0 || tasks[t].level != tasks[t - 1].level ||
        tasks[t].part.first_channel != tasks[t - 1].part.first_channel) {
      firsts.push_back(t);
    }
  }
  parallel(static_cast<int64_t>(firsts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin; f < end; ++f) {
      const int64_t first = firsts[f];
      const int64_t after = f + 1 < static_cast<int64_t>(firsts.size()) ? firsts[f + 1] : tasks.size();
      const PyramidLevel& level = in.levels[tasks[first].level];
      const PyramidPart& part = tasks[first].part;
      const int64_t channels = part.last_channel - part.first_channel;
      const bool with_bias = tasks[first].level == 0 && part.first_channel == 0;
      float* sum = partials.get() + starts[first];
      sum_chunks(sum, after - first, starts[first + 1] - starts[first], (channels + with_bias) * shape.padded);
      const Buffer row(channels);
      for (int64_t c = 0; c < in.channels; ++c) {
        for (int64_t i = 0; i < channels; ++i) {
          row.get()[i] = sum[i * shape.padded + c];
        }
        kernels().narrow(in.dtype, row.get(), level.grad_weight, c * level.channels + part.first_channel, channels);
      }
      if (with_bias) {
        std::copy(sum + channels * shape.padded, sum + channels * shape.padded + in.channels, grad_bias);
      }
    }
  });
}

}  // namespace d2ls
