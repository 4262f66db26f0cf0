// The third phase of a dictionary step: the norm, and the rows of query, key and value that meet the pixels.
#pragma once

#include "cuda/step_update.cuh"

namespace d2ls::cuda {

// What a step folds the dictionary into, of one image; null where it is absent.
struct StepRows {
  void *query, *key, *value;
  float* key_bias;
};

// The dictionary of an image on its way: before is [entries, channels] and sums what add_update left, or null where there
// is no update; after, where given, takes the next dictionary.
struct Tokens {
  const float *before, *sums, *position;
  float* after;
};

D2LS_EITHER constexpr uint32_t rows_shared_bytes(const StepShape& s) {
  return (s.entries * s.channels + s.entries * (s.inner / s.heads)) * sizeof(float);
}

// Projects the entries by `weight` rows of a head, and folds what comes out by `folding`, whose element (i, c) lies at
// c * inner + i if it is an out_weight, otherwise at i * channels + c.
struct Folding {
  const float *weight, *bias, *folding, *folding_bias;
  bool placed, outward;
  float scale;
  void* rows;
};

D2LS_DEVICE Folding folding_of(int part, const StepShape& s, const EntriesWeights& e, const LookWeights& l,
                               const StepRows& to) {
  const float scale = inverse_root(static_cast<float>(s.inner / s.heads));
  switch (part) {
    case 0:
      return {l.query_weight, l.query_bias, l.key_weight, nullptr, true, false, scale, to.query};
    case 1:
      return {e.key_weight, e.key_bias, e.query_weight, e.query_bias, true, false, scale, to.key};
    default:
      return {e.value_weight, e.value_bias, e.out_weight, nullptr, false, true, 1.0f, to.value};
  }
}

// The entries, normalised after an update, and with their position if `placed`, to shared memory: a warp an entry. Every
// block does all of them for itself.
D2LS_DEVICE void load_tokens(const StepShape& s, const UpdateWeights& u, const Tokens& tokens, bool placed,
                             const Crew& crew) {
  const int lane = thread_index() % 32;
  for (int entry = thread_index() / 32; entry < s.entries; entry += step_warps) {
    const int64_t first = static_cast<int64_t>(entry) * s.channels;
    Share token = Share::of(s.channels, [&](int quad) { return load_four(tokens.before + first + 4 * quad); });
    const Share position = Share::of(
        s.channels, [&](int quad) { return placed ? load_four(tokens.position + first + 4 * quad) : Four{}; });
    if (tokens.sums != nullptr) {
      const Share sums = Share::of(s.channels, [&](int quad) { return load_four(tokens.sums + first + 4 * quad); });
      float total = 0, squares = 0;
      D2LS_UNROLL
      for (int i = 0; i < 2; ++i) {
        token.four[i] = sum_of(token.four[i], sums.four[i]);
        total += dot(token.four[i], {1, 1, 1, 1});
      }
      const float mean = warp_sum(total) / s.channels;
      D2LS_UNROLL
      for (int i = 0; i < 2; ++i) {
        const bool inside = 4 * (lane + 32 * i) < s.channels;
        token.four[i] = inside ? sum_of(token.four[i], {-mean, -mean, -mean, -mean}) : Four{};
        squares += dot(token.four[i], token.four[i]);
      }
      const float scale = inverse_root(warp_sum(squares) / s.channels + s.eps);
      const Share weight = Share::of(s.channels, [&](int quad) { return load_four(u.norm_weight + 4 * quad); });
      const Share bias = Share::of(s.channels, [&](int quad) { return load_four(u.norm_bias + 4 * quad); });
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        float& value = token.four[i / 4].value[i % 4];
        value = value * scale * weight.four[i / 4].value[i % 4] + bias.four[i / 4].value[i % 4];
      }
    }
    D2LS_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int quad = lane + 32 * i;
      if (4 * quad < s.channels) {
        store_shared(crew.shared + 4 * static_cast<uint32_t>(first) + 16 * quad,
                     sum_of(token.four[i], position.four[i]));
        if (tokens.after != nullptr && crew.worker == 0) {
          *reinterpret_cast<Four*>(tokens.after + first + 4 * quad) = token.four[i];
        }
      }
    }
  }
}

// One head's entries, projected, to shared memory from `to` on, [entries, width].
D2LS_DEVICE void project(const StepShape& s, const Folding& f, int head, uint32_t tokens, uint32_t to) {
  const int lane = thread_index() % 32, width = s.inner / s.heads;
  D2LS_UNROLL_TWICE
  for (int i = thread_index() / 32; i < width; i += step_warps) {
    const int inner = head * width + i;
    const float* row = f.weight + static_cast<int64_t>(inner) * s.channels;
    const Share weight = Share::of(s.channels, [&](int quad) { return load_four(row + 4 * quad); });
    const float bias = f.bias[inner];
    for (int entry = 0; entry < s.entries; ++entry) {
      const Share token = Share::of(
          s.channels, [&](int quad) { return load_shared<Four>(tokens + 4 * entry * s.channels + 16 * quad); });
      const float product = weight.times(token);
      if (lane == 0) {
        store_shared(to + 4 * (entry * width + i), (product + bias) * f.scale);
      }
    }
  }
}

template <class T>
D2LS_DEVICE void store_four(T* to, const Four& value) {
  if constexpr (sizeof(T) == 2) {
    struct alignas(8) Packed {
      uint32_t word[2];
    };
    *reinterpret_cast<Packed*>(to) = {Pair<T>::pack(value.value[0], value.value[1]),
                                      Pair<T>::pack(value.value[2], value.value[3])};
  } else {
    *reinterpret_cast<Four*>(to) = value;
  }
}

// Quads `first` to `last` of one head's rows.
template <class T>
D2LS_DEVICE void fold(const StepShape& s, const Folding& f, int head, int first, int last, uint32_t projected) {
  const int width = s.inner / s.heads, quads = last - first;
  for (int i = thread_index(); i < s.entries * quads; i += step_threads) {
    const int entry = i / quads, quad = first + i % quads;
    Four total{};
    D2LS_UNROLL_SIXTEEN
    for (int j = 0; j < width; ++j) {
      const int inner = head * width + j;
      Four weight;
      if (f.outward) {  // a row's neighbours are read by the same thread, from L1
        D2LS_UNROLL
        for (int c = 0; c < 4; ++c) {
          weight.value[c] = f.folding[(4 * quad + c) * s.inner + inner];
        }
      } else {
        weight = load_four(f.folding + static_cast<int64_t>(inner) * s.channels + 4 * quad);
      }
      const float value = load_shared<float>(projected + 4 * (entry * width + j));
      D2LS_UNROLL
      for (int c = 0; c < 4; ++c) {
        total.value[c] += value * weight.value[c];
      }
    }
    store_four(static_cast<T*>(f.rows) + static_cast<int64_t>(head * s.entries + entry) * s.channels + 4 * quad, total);
  }
}

// Phase 3, an item a part (query, key or value), a head and a slice of the channels. A slice projects anew: reading 16 KB
// of weights again costs less than a barrier. Where there are no items the entries are left in shared memory.
template <class T>
D2LS_DEVICE void fold_rows(const StepShape& s, const UpdateWeights& u, const EntriesWeights& e, const LookWeights& l,
                           const Tokens& tokens, const StepRows& to, const Crew& crew) {
  const int first_part = to.query != nullptr ? 0 : 1, parts = (to.key != nullptr ? 3 : 1) - first_part;
  const int quads = s.channels / 4, width = s.inner / s.heads, whole = parts * s.heads;
  const int wanted = smaller(quads / 16, whole > 0 ? crew.workers / whole : 1), slices = wanted > 1 ? wanted : 1;
  const uint32_t projected = crew.shared + 4 * s.entries * s.channels;
  bool placed = crew.worker < whole * slices && crew.worker / slices / s.heads + first_part < 2;
  block_barrier();
  load_tokens(s, u, tokens, placed, crew);
  for (int item = crew.worker; item < whole * slices; item += crew.workers) {
    const int slice = item % slices, head = item / slices % s.heads, part = first_part + item / slices / s.heads;
    const Folding f = folding_of(part, s, e, l, to);
    block_barrier();
    if (f.placed != placed) {
      placed = f.placed;
      load_tokens(s, u, tokens, placed, crew);
      block_barrier();
    }
    project(s, f, head, crew.shared, projected);
    block_barrier();
    fold<T>(s, f, head, slice * quads / slices, (slice + 1) * quads / slices, projected);
    if (f.folding_bias != nullptr && slice == 0) {
      for (int entry = thread_index(); entry < s.entries; entry += step_threads) {
        float sum = 0;
        for (int j = 0; j < width; ++j) {
          sum += load_shared<float>(projected + 4 * (entry * width + j)) * f.folding_bias[head * width + j];
        }
        to.key_bias[head * s.entries + entry] = sum;
      }
    }
  }
}

}  // namespace d2ls::cuda
