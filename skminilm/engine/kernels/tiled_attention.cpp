/* Softmax attention of sequences that lie end to end in one matrix of bfloat16, on the tiles of AMX.

One thread takes one head of one sequence at a time. Tiles multiply bfloat16 and add in float32, in which the
softmax is computed; its exponentials are rounded to bfloat16 for their product with the values.
*/
#include <math.h>

#include "heads.hpp"
#include "tiles.hpp"

#if defined(TILES)
constexpr int kDepth = kRowNumbers; /* of a row of a tile that are multiplied */
constexpr int kTile = kTileBytes / sizeof(uint16_t);
constexpr int kBlock = 64; /* queries at a time, which bounds the memory */

/* What a head needs besides its queries. Keys and values fill up with zeros to whole steps of kDepth. */
struct Head {
  int length, n_steps, size;
  uint16_t *keys;   /* (2 * n_steps, size / 32) tiles of 16 pairs of numbers, 16 keys */
  uint16_t *values; /* (size / 16, n_steps) tiles of 16 pairs of keys, 16 numbers */
  uint16_t *queries, *exponentials;
  float *scores, *sums, *totals;

  Head(int length, int size, Scratch scratch)
      : length(length), n_steps((length + kDepth - 1) / kDepth), size(size) {
    int64_t width = n_steps * kDepth;
    keys = (uint16_t *)scratch.take(width * size / 2), values = (uint16_t *)scratch.take(width * size / 2);
    queries = (uint16_t *)scratch.take(kTileRows * size / 2);
    exponentials = (uint16_t *)scratch.take(kBlock * width / 2);
    scores = scratch.take(kBlock * width), sums = scratch.take(kBlock * size),
    totals = scratch.take(kBlock * kLanes);
  }
};

INLINE int64_t floats_for_head(int64_t length, int64_t size) {
  int64_t width = length + kDepth; /* at the most */
  return width * size + kTileRows * size / 2 + kBlock * (width / 2 + width + size + kLanes) + 7 * kLanes;
}

static void read_keys(const uint16_t *x, int64_t stride, const Head &head) {
  uint16_t *tile = head.keys;
  for (int first = 0; first < head.n_steps * kDepth; first += kTileRows)
    for (int d = 0; d < head.size; d += kDepth, tile += kTile) {
      Floats block[kTileRows]; /* pairs of numbers: they are only moved */
      for (int i = 0; i < kTileRows; i++)
        block[i] = first + i < head.length ? (Floats)load_row(x + (first + i) * stride + d) : Floats{};
      transpose(block);
      memcpy(tile, block, kTileBytes);
    }
}

static void read_values(const uint16_t *x, int64_t stride, const Head &head) {
  for (int key = 0; key < head.n_steps * kDepth; key += 2)
    for (int d = 0; d < head.size; d += kDepth) {
      Row even = key < head.length ? load_row(x + key * stride + d) : Row{};
      Row odd = key + 1 < head.length ? load_row(x + (key + 1) * stride + d) : Row{};
      uint16_t *place =
          head.values + (d / 16 * head.n_steps + key / kDepth) * kTile + key % kDepth / 2 * kDepth;
      interleave(even, odd, (Row *)place, (Row *)(place + head.n_steps * kTile));
    }
}

/* scores (16, n_steps * 32) of 16 queries */
INLINE void score(const uint16_t *queries, int64_t stride, const Head &head, float *scores) {
  int64_t width = head.n_steps * kDepth;
  const uint16_t *keys = head.keys;
  write_memory();
  for (int step = 0; step < head.n_steps; step++) {
    _tile_zero(0);
    _tile_zero(1);
    for (int d = 0; d < head.size; d += kDepth, keys += kTile) {
      _tile_loadd(4, queries + d, stride * sizeof(uint16_t));
      _tile_loadd(6, keys, kTileRowBytes);
      _tile_loadd(7, keys + head.size / kDepth * kTile, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    keys += head.size / kDepth * kTile;
    _tile_stored(0, scores + step * kDepth, width * sizeof(float));
    _tile_stored(1, scores + step * kDepth + 16, width * sizeof(float));
  }
}

/* Write exponentials of a row of scores. */
INLINE void exponentials(const float *scores, const Head &head, uint16_t *result) {
  int n = (head.length + kLanes - 1) / kLanes;
  Ints lanes;
  for (int lane = 0; lane < kLanes; lane++) lanes[lane] = lane;
  auto vector = [&](int i) __attribute__((always_inline)) {
    Floats values = Float32::load(scores + i * kLanes);
    return i == n - 1 ? (lanes < head.length - i * kLanes ? values : Floats{} - INFINITY) : values;
  };
  Floats top = vector(0);
  for (int i = 1; i < n; i++) {
    Floats values = vector(i);
    top = values > top ? values : top;
  }
  float scale = 1.44269504f / sqrtf(head.size);      /* log2(e) */
  float highest = _mm512_reduce_max_ps((__m512)top); /* taken off first, so that it becomes 0 exactly */
  for (int i = 0; i < n; i++) {
    NativeBFloat16::store(result + i * kLanes, power_of_two((vector(i) - highest) * scale));
  }
  if (n % 2) NativeBFloat16::store(result + n * kLanes, Floats{});
}

/* sums (16, size) of the values, weighted by exponentials, and totals (16, 16) of these, each 16 times */
INLINE void weigh(const uint16_t *exponentials, const Head &head, float *sums, float *totals) {
  write_memory();
  for (int d = 0; d < head.size; d += kDepth) {
    const uint16_t *values = head.values + d / 16 * head.n_steps * kTile;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int step = 0; step < head.n_steps; step++, values += kTile) {
      _tile_loadd(4, exponentials + step * kDepth, head.n_steps * kDepth * sizeof(uint16_t));
      _tile_loadd(6, values, kTileRowBytes);
      _tile_loadd(7, values + head.n_steps * kTile, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (d == 0) _tile_dpbf16ps(2, 4, 5);
    }
    _tile_stored(0, sums + d, head.size * sizeof(float));
    _tile_stored(1, sums + d + 16, head.size * sizeof(float));
    if (d == 0) _tile_stored(2, totals, kTileRowBytes);
  }
}

/* One head of one sequence. Rows of qkv hold queries, keys and values of all heads: 3 * hidden numbers. */
static void attend(const uint16_t *qkv, uint16_t *attended, int length, int64_t hidden, int size,
                   Scratch scratch) {
  TileShapes shapes;
  write_memory();
  _tile_loadconfig(&shapes);
  Head head(length, size, scratch);
  Row ones[kTileRows];
  for (Row &row : ones) row = Row{} + 0x3f80; /* 1 in bfloat16 */
  write_memory();
  _tile_loadd(5, ones, kTileRowBytes);
  int64_t stride = 3 * hidden;
  read_keys(qkv + hidden, stride, head);
  read_values(qkv + 2 * hidden, stride, head);
  int64_t width = head.n_steps * kDepth;
  for (int start = 0; start < length; start += kBlock) {
    int n_rows = length - start < kBlock ? length - start : kBlock;
    for (int row = 0; row < n_rows; row += kTileRows) {
      const uint16_t *queries = qkv + (start + row) * stride;
      float *scores = head.scores + row * width;
      if (n_rows - row < kTileRows) { /* no memory behind the last row is read */
        for (int i = 0; i < n_rows - row; i++)
          memcpy(head.queries + i * size, queries + i * stride, size * sizeof(uint16_t));
        score(head.queries, size, head, scores);
      } else {
        score(queries, stride, head, scores);
      }
    }
    for (int row = 0; row < n_rows; row++)
      exponentials(head.scores + row * width, head, head.exponentials + row * width);
    for (int row = 0; row < n_rows; row += kTileRows)
      weigh(head.exponentials + row * width, head, head.sums + row * size, head.totals + row * kLanes);
    for (int row = 0; row < n_rows; row++) {
      Floats factor = 1.0f / *(const Floats *)(head.totals + row * kLanes);
      for (int d = 0; d < size; d += kLanes)
        NativeBFloat16::store(attended + (start + row) * hidden + d,
                              *(const Floats *)(head.sums + row * size + d) * factor);
    }
  }
  _tile_release();
}

/* attention_forward of attention.cpp for bfloat16; size is a multiple of 32 */
extern "C" int tiled_attention_forward(const void *qkv, void *attended, const int32_t *offsets,
                                       int64_t n_slots, int n_sequences, int n_heads, int size,
                                       int n_threads) {
  return attend_in_each_head<uint16_t>(qkv, attended, offsets, n_slots, n_sequences, n_heads, size, n_threads,
                                       floats_for_head(longest_of(offsets, n_sequences), size), attend);
}
#endif

int tiles_allowed = 1;

/* Of a head that tiled attention takes, the size is a multiple of this; 0 where there is no such attention.
 */
extern "C" int tiled_attention_step() { return has_tiles() ? 32 : 0; }
