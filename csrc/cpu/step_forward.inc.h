// The tasks of a dictionary step in their order: mix the context to V, advance the dictionary to D', fold its rows with
// the weights of the passes; see step.h for the formulas.
// Included inside the namespace of one instruction set; see isa_*.cpp.

inline void mix_rows(const StepInputs& in, StepState state, StepRows rows, int64_t head, double* scratch) {
  const StepScratch s = carve_step(in, scratch);
  gather_rows(in, Dtype::f32, in.update.context, rows, head, s);
  double* to = state.mixed + rows.begin * in.inner + head * in.width();
  project_rows(in, s.wide, in.update.value_weight, in.update.value_bias, rows, head, 1.0, to, in.inner);
}

inline void advance_rows(const StepInputs& in, StepState state, StepRows rows, float* dictionary) {
  const int64_t channels = in.channels, inner = in.inner;
  const double share = 1.0 / static_cast<double>(channels);
  if (in.update.context != nullptr) {
    dots(rows.end - rows.begin, channels, inner, state.mixed + rows.begin * inner, inner, in.update.out_weight, inner,
         state.entry + rows.begin * channels, channels);
  }
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const float* previous = in.dictionary + r * channels;
    const float* position = in.position + r * channels;
    double* entry = state.entry + r * channels;
    double* normal = state.normal + r * channels;
    if (in.update.context != nullptr) {
      for (int64_t c = 0; c < channels; ++c) entry[c] += static_cast<double>(in.update.out_bias[c]) + previous[c];
      const double mean = share * sum_terms(channels, [&](int64_t c) { return entry[c]; });
      const double variance =
          share * sum_terms(channels, [&](int64_t c) { return (entry[c] - mean) * (entry[c] - mean); });
      state.inverse[r] = 1.0 / __builtin_sqrt(variance + in.eps);
      for (int64_t c = 0; c < channels; ++c) {
        normal[c] = (entry[c] - mean) * state.inverse[r];
        entry[c] = normal[c] * in.update.norm_weight[c] + in.update.norm_bias[c];
      }
      if (dictionary != nullptr) to_floats(entry, channels, dictionary + r * channels);
    } else {
      for (int64_t c = 0; c < channels; ++c) entry[c] = previous[c];
    }
    for (int64_t c = 0; c < channels; ++c) state.placed[r * channels + c] = entry[c] + position[c];
  }
}

inline void fold_part(const StepInputs& in, const StepFold& part, const double* placed, StepRows rows, int64_t head,
                      void* to, float* bias, const StepScratch& s) {
  const int64_t d = in.width(), channels = in.channels, count = rows.end - rows.begin;
  const double* tokens = placed + rows.begin * channels;
  project_rows(in, tokens, part.weight, part.bias, rows, head, score_scale(in), s.projected, d);
  product(count, channels, d, {s.projected, d, 1}, part.folding + head * d * channels, channels, s.wide, channels, false);
  scatter_rows(in, in.dtype, s, rows, head, to);
  for (int64_t r = 0; r < count && bias != nullptr; ++r) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) sum += s.projected[r * d + i] * part.folding_bias[head * d + i];
    bias[folded_row(in, rows.begin + r, head)] = static_cast<float>(sum);
  }
}

inline void fold_rows(const StepForward& call, StepState state, StepRows rows, int64_t head, double* scratch) {
  const StepInputs& in = call.in;
  const StepScratch s = carve_step(in, scratch);
  const int64_t d = in.width(), channels = in.channels, count = rows.end - rows.begin;
  if (in.look.weight != nullptr) fold_part(in, in.look, state.placed, rows, head, call.query, nullptr, s);
  if (in.key.weight == nullptr) return;
  fold_part(in, in.key, state.placed, rows, head, call.key, call.key_bias, s);
  const double* tokens = state.entry + rows.begin * channels;
  project_rows(in, tokens, in.value.weight, in.value.bias, rows, head, 1.0, s.projected, d);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < d; ++i) s.folding[i * channels + c] = in.value.out_weight[c * in.inner + head * d + i];
  }
  product(count, channels, d, {s.projected, d, 1}, s.folding, channels, s.wide, channels, false);
  scatter_rows(in, in.dtype, s, rows, head, call.value);
}
