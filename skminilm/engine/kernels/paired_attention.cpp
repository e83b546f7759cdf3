/* Softmax attention of sequences that lie end to end in one matrix of bfloat16, by the instruction that adds
the products of two neighbours to a sum in float32.

One thread takes one head of one sequence at a time. The softmax is computed in float32; its exponentials are
rounded to bfloat16 for their product with the values. A query is a lane of a vector, so that the softmax
needs no sum across lanes.
*/
#include <math.h>

#include "heads.hpp"
#include "processor.hpp"

#if defined(__AVX512BF16__)
constexpr int kBlock = 64; /* queries at a time, which bounds the memory */

/* ---- Products of small matrices of pairs of neighbours: a @ b ---------------------------------------- */

/* (m, depth) with any strides */
struct Factors {
  const uint32_t *pairs;
  int64_t row, column;
};

/* finish(row, vector, sums) for kRows rows of a with kVectors of those that rows of b have */
template <int kRows, int kVectors, class Finish>
INLINE void tile(int depth, Factors a, const Bits *b, int64_t b_row, Finish finish) {
  Floats sums[kRows][kVectors];
  UNROLL
  for (int i = 0; i < kRows * kVectors; i++) sums[i / kVectors][i % kVectors] = Floats{};
  for (int k = 0; k < depth; k++) {
    Bits values[kVectors];
    UNROLL
    for (int j = 0; j < kVectors; j++) values[j] = b[k * b_row + j];
    UNROLL
    for (int i = 0; i < kRows; i++) {
      Bits factor = Bits{} + a.pairs[i * a.row + k * a.column];
      UNROLL
      for (int j = 0; j < kVectors; j++)
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i][j]) : "v"(factor), "v"(values[j]));
    }
  }
  UNROLL
  for (int i = 0; i < kRows; i++) {
    UNROLL
    for (int j = 0; j < kVectors; j++) finish(i, j, sums[i][j]);
  }
}

template <int kRows, int kVectors, class Finish>
INLINE void tile_of(int n_rows, int depth, Factors a, const Bits *b, int64_t b_row, Finish finish) {
  if (n_rows == kRows)
    tile<kRows, kVectors>(depth, a, b, b_row, finish);
  else if constexpr (kRows > 1)
    tile_of<kRows - 1, kVectors>(n_rows, depth, a, b, b_row, finish);
}

template <int kVectors, class Finish>
INLINE void panel(int m, int depth, Factors a, const Bits *b, int64_t b_row, Finish finish) {
  /* Sums stay in registers, of which there are 32. */
  constexpr int kRows = kVectors == 1 ? 12 : 24 / kVectors;
  int n_tiles = (m + kRows - 1) / kRows;
  for (int64_t i = 0; i < n_tiles; i++) { /* of like size: small ones wait for their sums */
    int first = m * i / n_tiles, n_rows = m * (i + 1) / n_tiles - first;
    Factors rows = {a.pairs + first * a.row, a.row, a.column};
    tile_of<kRows, kVectors>(n_rows, depth, rows, b, b_row,
                             [=](int row, int vector, Floats sums)
                                 __attribute__((always_inline)) { finish(first + row, vector, sums); });
  }
}

/* finish(row, vector, sums) for the products of m rows with all vectors of the rows of b */
template <class Finish>
INLINE void product(int m, int n_vectors, int depth, Factors a, const Bits *b, Finish finish) {
  for (int first = 0; first < n_vectors; first += 4) {
    auto finish_panel = [=](int row, int vector, Floats sums)
                            __attribute__((always_inline)) { finish(row, first + vector, sums); };
    int n = n_vectors - first;
    if (n >= 4) panel<4>(m, depth, a, b + first, n_vectors, finish_panel);
    if (n == 3) panel<3>(m, depth, a, b + first, n_vectors, finish_panel);
    if (n == 2) panel<2>(m, depth, a, b + first, n_vectors, finish_panel);
    if (n == 1) panel<1>(m, depth, a, b + first, n_vectors, finish_panel);
  }
}

/* ---- Layout ---------------------------------------------------------------------------------------- */

/* (size / 2, n_vectors) vectors of pairs of numbers of 16 rows; 0 behind the last of m */
static void read_columns(const uint16_t *x, int64_t stride, int m, int size, int n_vectors, Bits *columns) {
  for (int j = 0; j < n_vectors; j++)
    for (int d = 0; d < size; d += kRowNumbers) {
      Floats block[kLanes]; /* pairs: they are only moved */
      for (int i = 0; i < kLanes; i++) {
        int row = j * kLanes + i;
        block[i] = row < m ? (Floats)load_row(x + row * stride + d) : Floats{};
      }
      transpose(block);
      for (int i = 0; i < kLanes; i++) columns[(d / 2 + i) * n_vectors + j] = (Bits)block[i];
    }
}

/* ((length + 1) / 2, size / 16) vectors of pairs of rows */
static void read_rows(const uint16_t *x, int64_t stride, int length, int size, Bits *pairs) {
  for (int row = 0; row < length; row += 2)
    for (int d = 0; d < size; d += kRowNumbers, pairs += 2) {
      Row odd = row + 1 < length ? load_row(x + (row + 1) * stride + d) : Row{};
      interleave(load_row(x + row * stride + d), odd, (Row *)pairs, (Row *)(pairs + 1));
    }
}

/* ---- Attention ------------------------------------------------------------------------------------- */

INLINE int64_t floats_for_head(int64_t length, int64_t size) {
  return (length + 2) * size + kBlock * (size / 2 + length + (length + 1) / 2 + 2) + 6 * kLanes;
}

/* One head of one sequence. Rows of qkv hold queries, keys and values of all heads: 3 * hidden numbers. */
static void attend(const uint16_t *qkv, uint16_t *attended, int length, int64_t hidden, int size,
                   Scratch scratch) {
  int64_t stride = 3 * hidden;
  int n_pairs = (length + 1) / 2;
  uint16_t *keys = (uint16_t *)scratch.take((int64_t)length * size / 2);
  Bits *values = (Bits *)scratch.take((int64_t)n_pairs * size),
       *queries = (Bits *)scratch.take(kBlock * size / 2);
  Floats *scores = (Floats *)scratch.take((int64_t)length * kBlock);
  Bits *weights = (Bits *)scratch.take((int64_t)n_pairs * kBlock);
  Floats *tops = (Floats *)scratch.take(kBlock), *factors = (Floats *)scratch.take(kBlock);
  float scale = 1.44269504f / sqrtf(size); /* log2(e) */
  for (int i = 0; i < length; i++)
    memcpy(keys + i * size, qkv + hidden + i * stride, size * sizeof(uint16_t));
  read_rows(qkv + 2 * hidden, stride, length, size, values);
  for (int start = 0; start < length; start += kBlock) {
    int m = length - start < kBlock ? length - start : kBlock, n_vectors = (m + kLanes - 1) / kLanes;
    read_columns(qkv + start * stride, stride, m, size, n_vectors, queries);
    for (int j = 0; j < n_vectors; j++) tops[j] = Floats{} - INFINITY;
    product(length, n_vectors, size / 2, Factors{(uint32_t *)keys, size / 2, 1}, queries,
            [=](int64_t key, int vector, Floats sums) __attribute__((always_inline)) {
              scores[key * n_vectors + vector] = sums;
              tops[vector] = sums > tops[vector] ? sums : tops[vector];
            });
    for (int j = 0; j < n_vectors; j++) {
      Floats top = tops[j], sum = {};
      auto exponential = [=](int64_t key) __attribute__((always_inline)) {
        return power_of_two((scores[key * n_vectors + j] - top) * scale);
      };
      for (int64_t i = 0; i < n_pairs; i++) {
        Floats even = exponential(2 * i), odd = 2 * i + 1 < length ? exponential(2 * i + 1) : Floats{};
        sum += even + odd;
        Bits low = (Bits)even + 0x8000, high = (Bits)odd + 0x8000; /* to the nearest */
        weights[i * n_vectors + j] = low >> 16 | (high & 0xffff0000);
      }
      factors[j] = 1.0f / sum;
    }
    const float *factor = (const float *)factors;
    product(m, size / kLanes, n_pairs, Factors{(uint32_t *)weights, 1, n_vectors * kLanes}, values,
            [=](int64_t query, int vector, Floats sums) __attribute__((always_inline)) {
              NativeBFloat16::store(attended + (start + query) * hidden + vector * kLanes,
                                    sums * factor[query]);
            });
  }
}

/* attention_forward of attention.cpp for bfloat16; size is a multiple of 32 */
extern "C" int paired_attention(const void *qkv, void *attended, const int32_t *offsets, int64_t n_slots,
                                int n_sequences, int n_heads, int size, int n_threads) {
  return attend_in_each_head<uint16_t>(qkv, attended, offsets, n_slots, n_sequences, n_heads, size, n_threads,
                                       floats_for_head(longest_of(offsets, n_sequences), size), attend);
}

/* Of a head that paired_attention takes, the size is a multiple of this; 0 where there is no such attention.
 */
extern "C" int paired_attention_step() { return instructions().bfloat16 ? 32 : 0; }
#else
extern "C" int paired_attention_step() { return 0; }
#endif
