#include "cpu/step.h"

#include <algorithm>
#include <utility>

#include "cpu/kernels.h"

namespace d2ls {
namespace {

const StepKernels& kernels() { return chosen_kernels().step; }

class Doubles {
 public:
  explicit Doubles(int64_t count) : memory_(2 * count) {}
  double* get() const { return reinterpret_cast<double*>(memory_.get()); }

 private:
  Buffer memory_;
};

// The memory of a StepState.
class Shared {
 public:
  Shared(const StepInputs& in, bool backward)
      : memory_(in.rows() * (in.inner + 3 * in.channels + 1 + (backward ? 4 * in.inner + in.channels : 0))) {
    const int64_t rows = in.rows(), wide = rows * in.channels, narrow = rows * in.inner;
    double* at = memory_.get();
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    state.mixed = take(narrow);
    state.normal = take(wide);
    state.inverse = take(rows);
    state.entry = take(wide);
    state.placed = take(wide);
    if (backward) {
      state.query = take(narrow);
      state.key = take(narrow);
      state.value = take(narrow);
      state.total = take(wide);
      state.to_mixed = take(narrow);
    }
  }
  StepState state{};

 private:
  Doubles memory_;
};

// body(rows, head, scratch) for every block of rows and every head.
template <class Body>
void over_blocks(const StepInputs& in, const Parallel& parallel, Body body) {
  const int64_t blocks = (in.rows() + kStepBlock - 1) / kStepBlock;
  parallel(blocks * in.heads, 1, [&](int64_t begin, int64_t end) {
    const Doubles scratch(kernels().scratch(in));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / in.heads * kStepBlock;
      body(StepRows{first, std::min(first + kStepBlock, in.rows())}, task % in.heads, scratch.get());
    }
  });
}

template <class Body>
void over_heads(const StepInputs& in, const Parallel& parallel, Body body) {
  parallel(in.heads, 1, [&](int64_t begin, int64_t end) {
    const Doubles scratch(kernels().scratch(in));
    for (int64_t head = begin; head < end; ++head) {
      body(head, scratch.get());
    }
  });
}

int64_t few_count(const StepInputs& in) { return (in.rows() + kStepFew - 1) / kStepFew; }

StepRows few_rows(const StepInputs& in, int64_t task) {
  return {task * kStepFew, std::min((task + 1) * kStepFew, in.rows())};
}

// The dictionary of this step, in double; as float32 too where it is wanted.
void advance(const StepInputs& in, StepState state, float* dictionary, const Parallel& parallel) {
  if (in.update.context != nullptr) {
    over_blocks(in, parallel, [&](StepRows rows, int64_t head, double* scratch) {
      kernels().mix(in, state, rows, head, scratch);
    });
  }
  parallel(few_count(in), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      kernels().advance(in, state, few_rows(in, task), dictionary);
    }
  });
}

}  // namespace

void step_forward(const StepForward& call, const Parallel& parallel) {
  const StepInputs& in = call.in;
  const Shared shared(in, false);
  advance(in, shared.state, call.dictionary, parallel);
  if (in.look.weight == nullptr && in.key.weight == nullptr) return;
  over_blocks(in, parallel, [&](StepRows rows, int64_t head, double* scratch) {
    kernels().fold(call, shared.state, rows, head, scratch);
  });
}

void step_backward(const StepBackward& call, const Parallel& parallel) {
  const StepInputs& in = call.in;
  const int64_t channels = in.channels, count = few_count(in);
  const Shared shared(in, true);
  const StepState& state = shared.state;
  advance(in, state, nullptr, parallel);
  over_heads(in, parallel, [&](int64_t head, double* scratch) { kernels().unfold(call, state, head, scratch); });
  const Doubles vectors(count * 3 * channels);
  std::fill(vectors.get(), vectors.get() + count * 3 * channels, 0.0);
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    const Doubles scratch(kernels().scratch(in));
    for (int64_t task = begin; task < end; ++task) {
      kernels().retreat(call, state, few_rows(in, task), vectors.get() + task * 3 * channels, scratch.get());
    }
  });
  if (in.update.context == nullptr) return;
  for (int64_t task = 1; task < count; ++task) {
    for (int64_t i = 0; i < 3 * channels; ++i) vectors.get()[i] += vectors.get()[task * 3 * channels + i];
  }
  float* const to[] = {call.to_norm_weight, call.to_norm_bias, call.to_out_bias};
  for (int64_t i = 0; i < 3; ++i) {
    std::copy(vectors.get() + i * channels, vectors.get() + (i + 1) * channels, to[i]);
  }
  over_heads(in, parallel, [&](int64_t head, double* scratch) { kernels().unmix(call, state, head, scratch); });
}

}  // namespace d2ls
