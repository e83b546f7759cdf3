/* Products of tokens with a weight in float32, on the tiles of AMX, with what follows them: bias, GELU,
residual.

Tiles multiply bfloat16 and add in float32. Each float32 is taken as the sum of two bfloat16, which is off by
2^-18 of it at the most, and three of their four products are added, as the last is as small: twice as fast as
float32 arithmetic (Henry, Tang & Heinecke, 2019, arXiv:1904.06376).
*/
#include "gelu.hpp"

#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <immintrin.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int kSide = 32;          /* rows and columns of a result, and depth of a step: 2 x 2 tiles */
constexpr int kTile = 512;         /* numbers of a tile of a factor, (16, 32) */
constexpr int kFactor = 4 * kTile; /* of a step of one factor: two tiles of high parts, two of low parts */

/* Eight tiles of 16 rows of 64 bytes. */
struct __attribute__((packed)) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/* Tiles 0 to 3 hold the sums, 4 and 5 tokens, 6 and 7 the weight. */
INLINE void load_tokens(const uint16_t *place) {
  _tile_loadd(4, place, 64);
  _tile_loadd(5, place + kTile, 64);
}

INLINE void load_weight(const uint16_t *place) {
  _tile_loadd(6, place, 64);
  _tile_loadd(7, place + kTile, 64);
}

INLINE void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

/* sums (32, 32) = tokens @ weight. In between, while the tiles compute, `between` is called with each step.
 */
template <class Between>
INLINE void sum_products(const uint16_t *tokens, const uint16_t *weight, int steps, float *sums,
                         Between between) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < steps; step++, tokens += kFactor, weight += kFactor) {
    load_tokens(tokens);
    load_weight(weight);
    add_products();
    load_weight(weight + 2 * kTile);
    add_products();
    load_tokens(tokens + 2 * kTile);
    load_weight(weight);
    add_products();
    between(step);
  }
  constexpr int kRow = kSide * sizeof(float);
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kSide / 2, kRow);
  _tile_stored(2, sums + kSide / 2 * kSide, kRow);
  _tile_stored(3, sums + kSide / 2 * kSide + kSide / 2, kRow);
}

/* Split rows (n_rows, depth) of x into tiles of high and low parts, with zeros below. */
INLINE void read_tokens(const float *x, int n_rows, int depth, uint16_t *tokens) {
  if (n_rows < kSide) memset(tokens, 0, (size_t)depth / kSide * kFactor * sizeof(uint16_t));
  for (int i = 0; i < n_rows; i++)
    for (int k = 0; k < depth; k += kLanes) {
      const float *place = x + (int64_t)i * depth + k;
      __builtin_prefetch(place + kSide * depth); /* the next rows */
      Floats value = Float32::load(place);
      uint16_t *high = tokens + k / kSide * kFactor + i * kSide + k % kSide;
      BFloat16::store(high, value);
      BFloat16::store(high + 2 * kTile, value - BFloat16::load(high));
    }
}

/* y (m, n) = x (m, depth) @ weight' + bias, then GELU or + residual; n and depth are multiples of 32. The
weight lies as (n / 32, depth / 32, 2 parts, 2 tiles, 16, 16, 2): strips of 32 columns, steps of 32, high and
low part. Returns 1 where the memory is too small. */
extern "C" int product(const float *x, const uint16_t *weight, const float *bias, const float *residual,
                       float *y, int64_t m, int n, int depth, int gelu, int n_threads) {
  int64_t n_blocks = (m + kSide - 1) / kSide;
  int n_strips = n / kSide, n_steps = depth / kSide, rows_a_step = (kSide + n_steps - 1) / n_steps;
  int n_shares = 1; /* of the strips: few tokens keep all threads busy too */
  while (n_blocks * n_shares < 4 * n_threads && n_strips % (2 * n_shares) == 0) n_shares *= 2;
  int strips_a_share = n_strips / n_shares;
  int64_t space = (int64_t)n_steps * kFactor;
  uint16_t *spaces = (uint16_t *)aligned_alloc(64, n_threads * space * sizeof(uint16_t));
  if (!spaces) return 1;
#pragma omp parallel num_threads(n_threads)
  {
    TileShapes shapes;
    _tile_loadconfig(&shapes);
    uint16_t *tokens = spaces + omp_get_thread_num() * space;
    float sums[2][kSide * kSide] __attribute__((aligned(64)));
#pragma omp for schedule(static)
    for (int64_t task = 0; task < n_blocks * n_shares; task++) {
      int64_t start = task / n_shares * kSide;
      int n_rows = m - start < kSide ? m - start : kSide;
      int first = task % n_shares * strips_a_share, last = first + strips_a_share - 1;
      read_tokens(x + start * depth, n_rows, depth, tokens);
      auto finish = [&](int strip, int row) __attribute__((always_inline)) {
        for (int j = 0; j < kSide; j += kLanes) {
          int64_t column = strip * kSide + j, place = (start + row) * n + column;
          Floats value = *(Floats *)(sums[strip & 1] + row * kSide + j) + Float32::load(bias + column);
          if (gelu) value = gelu_of(value);
          if (residual) value += Float32::load(residual + place);
          Float32::store(y + place, value);
        }
      };
      for (int strip = first; strip <= last; strip++)
        sum_products(tokens, weight + (int64_t)strip * n_steps * kFactor, n_steps, sums[strip & 1],
                     [&](int step) __attribute__((always_inline)) {
                       if (strip == first) return;
                       int stop = (step + 1) * rows_a_step;
                       for (int row = step * rows_a_step; row < stop && row < n_rows; row++)
                         finish(strip - 1, row);
                     });
      for (int row = 0; row < n_rows; row++) finish(last, row);
    }
    _tile_release();
  }
  free(spaces);
  return 0;
}

/* Tell whether the processor has such tiles, and ask the system for them. */
extern "C" int can_multiply() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & bit_AMX_BF16 && d & bit_AMX_TILE;
  return has_tiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else
extern "C" int can_multiply() { return 0; }
#endif
