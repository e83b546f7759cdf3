/* Products of a block of tokens with a weight, by vectors or on tiles. */
#pragma once

#include <omp.h>

#include "factors.hpp"

/* The threads that share a block of tokens, of so many in all teams. All teams wait for each other. */
struct Team {
  int member, size, n_threads;
  void wait() const {
    if (n_threads > 1) {
#pragma omp barrier
    }
  }
};

INLINE Bits load_lanes(const char *place) {
  typedef Bits Unaligned __attribute__((aligned(1)));
  return *(const Unaligned *)place;
}

/* How the numbers of a weight lie in memory: as (n / (n_tiles * columns), parts, depth / (groups * m),
 * n_tiles, groups, columns, m), where m neighbours of a row fill 32 bits. */
struct WeightLayout {
  int n_tiles, groups, columns;
};

/* Sums of some tokens with some vectors of columns are kept in registers, of which there are 32 or 16. */
template <class Factors_>
struct ByVectors {
  typedef Factors_ Factors;
  static constexpr int kRegisters = sizeof(typename Factors::Sums) / sizeof(Bits); /* for a sum */
  static constexpr int kRows = kLanes == 16 ? 6 : 6 / kRegisters, kBlock = 48, kUsualBlock = 24;
  static constexpr int kVectors = kLanes == 16 ? 4 / kRegisters : 2, kStrip = kVectors * kLanes;
  static constexpr WeightLayout kLayout = {1, 1, kStrip};

  /* All rows of a tile are multiplied: those behind the last become 0, as numbers that happen to lie there
   * could be so small that it takes a hundred times as long. */
  INLINE void clear_behind(const Rows &rows, int n_rows, int64_t depth) {
    int64_t row_bytes = depth * Factors::kBytes, n_behind = (kRows - n_rows % kRows) % kRows;
    memset(rows.numbers + n_rows * row_bytes, 0, n_behind * row_bytes);
  }

  /* finish(row, column, values) for the products of the rows from `first` on, but none from n_rows on, with a
   * strip of a weight; meanwhile what is `ahead` comes into the cache */
  template <class Finish>
  INLINE void tile(const Rows &x, int64_t first, int n_rows, const Matrix &weight, int64_t column,
                   const char *ahead, int64_t ahead_step, Finish finish) {
    int64_t row_bytes = weight.depth * Factors::kBytes;
    const char *rows = x.numbers + first * row_bytes, *numbers = weight.numbers + column * row_bytes;
    typename Factors::Sums sums[kRows][kVectors];
    UNROLL
    for (int i = 0; i < kRows * kVectors; i++) sums[i / kVectors][i % kVectors] = typename Factors::Sums{};
    for (int64_t k = 0; k < row_bytes;) {
      UNROLL
      for (int step = 0; step < Factors::kSteps; step++, k += 4, numbers += 4 * kStrip, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        Bits values[kVectors];
        UNROLL
        for (int j = 0; j < kVectors; j++) values[j] = load_lanes(numbers + j * kLanes * 4);
        UNROLL
        for (int i = 0; i < kRows; i++) {
          uint32_t neighbours;
          memcpy(&neighbours, rows + i * row_bytes + k, sizeof neighbours);
          Bits factor = Bits{} + neighbours;
          UNROLL
          for (int j = 0; j < kVectors; j++) Factors::add_products(sums[i][j], factor, values[j], step);
        }
      }
      /* Not UNROLL: from the last loop within another GCC hands it on to that. */
      for (int i = 0; i < kRows; i++)
        for (int j = 0; j < kVectors; j++) Factors::end_steps(sums[i][j]);
    }
    UNROLL
    for (int j = 0; j < kVectors; j++) {
      int64_t place = column + j * kLanes;
      UNROLL
      for (int i = 0; i < kRows; i++) {
        if (first + i >= n_rows) break;
        finish(first + i, place, Factors::value(sums[i][j], weight, place, x, first + i));
      }
    }
  }

  /* finish(row, column, values) for the products of n_rows rows with the team member's share of a weight */
  template <class Finish>
  INLINE void multiply(const Team &team, const Rows &x, int n_rows, const Matrix &weight, Finish finish) {
    int64_t n_strips = weight.n / kStrip, strip_bytes = weight.depth * Factors::kBytes * kStrip;
    int64_t stop = n_strips * (team.member + 1) / team.size;
    int n_tiles = (n_rows + kRows - 1) / kRows;
    for (int64_t strip = n_strips * team.member / team.size; strip < stop; strip++) {
      const char *next = weight.numbers + (strip + 1) % n_strips * strip_bytes; /* a part during each tile */
      for (int i = 0; i < n_tiles; i++)
        tile(x, i * kRows, n_rows, weight, strip * kStrip, next + i * strip_bytes / n_tiles,
             4 * kStrip / n_tiles, finish);
    }
  }
};

#if defined(TILES)
/* Sums of 32 tokens with 32 columns are kept on the tiles 0 to 3 of AMX; 4 and 5 hold factors of tokens, 6
 * and 7 of the weight. */
template <class Factors_>
struct OnTiles {
  typedef Factors_ Factors;
  static constexpr int kRows = kTileRows, kBlock = Factors::kBytes == 1 ? 64 : 128, kUsualBlock = kBlock;
  static constexpr int kSide = 2 * kTileRows;
  static constexpr WeightLayout kLayout = {2, kTileRows, kTileRows};
  typedef decltype(typename Factors::Sums{}[0] + 0) Sum;

  /* Rows behind the last are multiplied whatever lies there: to tiles small numbers are 0. */
  INLINE void clear_behind(const Rows &, int, int64_t) {}

  template <bool is_full>
  INLINE void load_tokens(const char *place, int64_t row_bytes) {
    _tile_loadd(4, place, kTileRowBytes);
    if (is_full) _tile_loadd(5, place + kTileRows * row_bytes, kTileRowBytes);
  }
  INLINE void load_weight(const char *place) {
    _tile_loadd(6, place, kTileRowBytes);
    _tile_loadd(7, place + kTileBytes, kTileRowBytes);
  }
  template <bool is_full>
  INLINE void add_products() {
    if (Factors::kBytes == 1) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      if (is_full) _tile_dpbusd(2, 5, 6);
      if (is_full) _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (is_full) _tile_dpbf16ps(2, 5, 6);
      if (is_full) _tile_dpbf16ps(3, 5, 7);
    }
  }

  /* sums (32, 32) = tokens @ weight, or the upper half of it. In between, while the tiles compute, `between`
   * is called with each step. */
  template <bool is_full, class Between>
  INLINE void sum_products(const char *tokens, const char *weight, int64_t row_bytes, Sum *sums,
                           Between between) {
    int n_steps = row_bytes / (kTileRowBytes * Factors::kParts), part_bytes = n_steps * kTileBytes;
    write_memory();
    _tile_zero(0);
    _tile_zero(1);
    if (is_full) _tile_zero(2);
    if (is_full) _tile_zero(3);
    for (int step = 0; step < n_steps; step++, tokens += kTileBytes, weight += 2 * kTileBytes) {
      load_tokens<is_full>(tokens, row_bytes);
      if (Factors::kParts == 2) {
        load_weight(weight + 2 * part_bytes);
        add_products<is_full>();
      }
      load_weight(weight);
      add_products<is_full>();
      if (Factors::kParts == 2) {
        load_tokens<is_full>(tokens + part_bytes, row_bytes);
        add_products<is_full>();
      }
      between(step);
    }
    constexpr int kSumBytes = kSide * sizeof(Sum);
    _tile_stored(0, sums, kSumBytes);
    _tile_stored(1, sums + kTileRows, kSumBytes);
    if (is_full) _tile_stored(2, sums + kTileRows * kSide, kSumBytes);
    if (is_full) _tile_stored(3, sums + kTileRows * kSide + kTileRows, kSumBytes);
  }

  /* finish(row, column, values) for the products of n_rows rows with the team member's share of a weight */
  template <class Finish>
  INLINE void multiply(const Team &team, const Rows &x, int n_rows, const Matrix &weight, Finish finish) {
    TileShapes shapes;
    write_memory();
    _tile_loadconfig(&shapes);
    Sum sums[2][kSide * kSide] __attribute__((aligned(64)));
    int64_t row_bytes = weight.depth * Factors::kBytes, n_sides = weight.n / kSide;
    int64_t stop = n_sides * (team.member + 1) / team.size;
    int n_steps = row_bytes / (kTileRowBytes * Factors::kParts),
        rows_a_step = (kSide + n_steps - 1) / n_steps;
    /* What is to be finished while the next sums are computed. */
    int current = 0, last_row = 0, last_rows = 0;
    int64_t last_column = 0;
    auto finish_rows = [&](int from, int to) __attribute__((always_inline)) {
      for (int i = from; i < to && i < last_rows; i++)
        for (int j = 0; j < kSide; j += kLanes) {
          auto values = *(const typename Factors::Sums *)(sums[current ^ 1] + i * kSide + j);
          int64_t row = last_row + i, column = last_column + j;
          finish(row, column, Factors::value(values, weight, column, x, row));
        }
    };
    auto between = [&](int step) __attribute__((always_inline)) {
      finish_rows(step * rows_a_step, (step + 1) * rows_a_step);
    };
    for (int64_t side = n_sides * team.member / team.size; side < stop; side++) {
      int64_t column = side * kSide;
      const char *numbers = weight.numbers + column * row_bytes;
      for (int row = 0; row < n_rows; row += kSide) {
        const char *tokens = x.numbers + row * row_bytes;
        if (n_rows - row > kTileRows)
          sum_products<true>(tokens, numbers, row_bytes, sums[current], between);
        else
          sum_products<false>(tokens, numbers, row_bytes, sums[current], between);
        last_row = row, last_column = column;
        last_rows = n_rows - row < kSide ? n_rows - row : kSide;
        current ^= 1;
      }
    }
    finish_rows(0, kSide);
    _tile_release();
  }
};
#endif
