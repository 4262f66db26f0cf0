// A matrix in shared memory, as ldmatrix and wgmma read it without bank conflicts.
//
// Columns are cut into panels of 128 bytes; the eight 16-byte words of a row of a panel are exchanged by its number
// (word w of row r lies at w xor r mod 8), which is the 128-byte swizzle of Hopper's descriptors.
#pragma once

#include "cuda/instructions/copy.cuh"
#include "cuda/instructions/numbers.cuh"

namespace d2ls::cuda {

template <class T, int ROWS, int COLUMNS>
struct Tile {
  using Number = T;
  static constexpr int rows = ROWS;
  static constexpr int panel = 128 / sizeof(T);     // columns
  static constexpr int per_word = 16 / sizeof(T);   // columns of a 16-byte word
  static constexpr int words = COLUMNS / per_word;  // of a row
  static constexpr uint32_t panel_bytes = ROWS * 128;
  static constexpr uint32_t bytes = ROWS * COLUMNS * sizeof(T);
  static_assert(ROWS % 8 == 0 && COLUMNS % panel == 0);

  static D2LS_DEVICE uint32_t word(uint32_t tile, int row, int word) {
    return tile + word / 8 * panel_bytes + row * 128 + ((word % 8 ^ row % 8) << 4);
  }

  // Starts copying rows `first` to `last` of the tile by `threads` threads: row r is row source_row(r) of a row-major
  // matrix of `channels` columns, or zeros where that is negative. Columns beyond `channels` become zeros.
  template <class SourceRow>
  static D2LS_DEVICE void load(uint32_t tile, int first, int last, const T* source, int channels, int thread,
                               int threads, const SourceRow& source_row) {
    D2LS_NO_UNROLL  // more would hold addresses in registers that the products need
    for (int i = first * words + thread; i < last * words; i += threads) {
      const int row = i / words, word = i % words;
      const int64_t from = source_row(row);
      const bool valid = from >= 0 && word * per_word < channels;
      copy_async(Tile::word(tile, row, word), source + (valid ? from * channels + word * per_word : 0), valid);
    }
  }
};

// Where a lane starts in a tile, and places at the same distance from it in every lane: one exclusive or and a constant.
template <class M>
struct Place {
  uint32_t start;

  // Bytes `byte` on of word `word` of row `row`; in every lane another one.
  D2LS_DEVICE Place(M, uint32_t tile, int row, int word, int byte = 0)
      : start(from_here(M::word(tile, row, word) + byte)) {}

  // `rows` further down and `words` further right: a multiple of 8, and one that has no bit in common with any `word`.
  D2LS_DEVICE uint32_t at(int rows, int words) const {
    return (start ^ words % 8 << 4) + words / 8 * M::panel_bytes + rows * 128;
  }
};

// x + pe of the 16-byte words that `load` with the same threads copied, in place of pe: no barrier is needed before.
template <class T>
D2LS_DEVICE Words add_words(const Words& a, const Words& b) {
  Words sum;
  D2LS_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      sum.word[i] = Pair<T>::add(a.word[i], b.word[i]);
    } else {
      sum.word[i] = float_as_word(word_as_float(a.word[i]) + word_as_float(b.word[i]));
    }
  }
  return sum;
}

template <class T, int ROWS, int COLUMNS>
D2LS_DEVICE void add_encoding(Tile<T, ROWS, COLUMNS>, uint32_t pixels, uint32_t pe, int thread, int threads,
                              int first = 0, int last = ROWS) {
  using M = Tile<T, ROWS, COLUMNS>;
  D2LS_UNROLL_TWICE
  for (int i = first * M::words + thread; i < last * M::words; i += threads) {
    const uint32_t offset = M::word(0, i / M::words, i % M::words);
    store_shared(pe + offset, add_words<T>(load_shared<Words>(pixels + offset), load_shared<Words>(pe + offset)));
  }
}

// Two neighbouring numbers of a row.
struct alignas(8) Two {
  float first, second;
};

struct alignas(16) Four {
  float value[4];
};

template <class T>
D2LS_DEVICE Two load_two(uint32_t offset) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t word = load_shared<uint32_t>(offset);
    return {Pair<T>::first(word), Pair<T>::second(word)};
  } else {
    return load_shared<Two>(offset);
  }
}

template <class T>
D2LS_DEVICE void store_two(uint32_t offset, Two value) {
  if constexpr (sizeof(T) == 2) {
    store_shared(offset, Pair<T>::pack(value.first, value.second));
  } else {
    store_shared(offset, value);
  }
}

// As numbers of type T.
template <class T>
D2LS_DEVICE Two rounded(Two value) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t word = Pair<T>::pack(value.first, value.second);
    return {Pair<T>::first(word), Pair<T>::second(word)};
  } else {
    return value;
  }
}

}  // namespace d2ls::cuda
