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
static void read_row_pairs(const uint16_t *x, int64_t stride, int length, int size, Bits *pairs) {
  for (int row = 0; row < length; row += 2)
    for (int d = 0; d < size; d += kRowNumbers, pairs += 2) {
      Row odd = row + 1 < length ? load_row(x + (row + 1) * stride + d) : Row{};
      interleave(load_row(x + row * stride + d), odd, (Row *)pairs, (Row *)(pairs + 1));
    }
}

/* ---- Attention ------------------------------------------------------------------------------------- */

/* (m, n_vectors) = rows (m, size) @ columns; finish(vector, values) for each */
template <class Finish>
INLINE void multiply(const uint16_t *rows, int m, int size, const Bits *columns, int n_vectors,
                     Floats *result, Finish finish) {
  product(m, n_vectors, size / 2, Factors{(const uint32_t *)rows, size / 2, 1}, columns,
          [=](int64_t row, int vector, Floats values) __attribute__((always_inline)) {
            result[row * n_vectors + vector] = values;
            finish(vector, values);
          });
}

/* What many queries share: rows of keys or values, one after the other */
static void copy_rows(const uint16_t *x, int64_t stride, int length, int size, uint16_t *rows) {
  for (int i = 0; i < length; i++) memcpy(rows + i * size, x + i * stride, size * sizeof(uint16_t));
}

/* Scores (length, n_vectors) of keys, a query in each lane, and the greatest of each query */
INLINE void score(const uint16_t *keys, int length, int size, const Bits *queries, int n_vectors,
                  Floats *scores, Floats *tops) {
  for (int j = 0; j < n_vectors; j++) tops[j] = Floats{} - INFINITY;
  multiply(keys, length, size, queries, n_vectors, scores,
           [=](int vector, Floats values) __attribute__((always_inline)) {
             tops[vector] = values > tops[vector] ? values : tops[vector];
           });
}

/* Of scores, which are scaled here */
struct Exponential {
  float scale;
  explicit Exponential(int size) : scale(1.44269504f / sqrtf(size)) {} /* log2(e) */
  Floats operator()(Floats score, Floats top) const { return power_of_two((score - top) * scale); }
};

/* Neighbours, rounded to the nearest */
INLINE Bits round_pair(Floats even, Floats odd) {
  Bits low = (Bits)even + 0x8000, high = (Bits)odd + 0x8000;
  return low >> 16 | (high & 0xffff0000);
}

INLINE int64_t floats_for_forward(int64_t length, int64_t size) {
  int64_t n_pairs = (length + 1) / 2;
  return 2 * n_pairs * size + kBlock * (size / 2 + length + n_pairs + 2) + 7 * kLanes;
}

/* One head of one sequence. Rows of qkv hold queries, keys and values of all heads: 3 * hidden numbers. */
static void attend(const uint16_t *qkv, uint16_t *attended, int length, int64_t hidden, int size,
                   Scratch scratch) {
  int64_t stride = 3 * hidden, n_pairs = (length + 1) / 2;
  uint16_t *keys = scratch.take<uint16_t>((int64_t)length * size);
  Bits *values = scratch.take<Bits>(n_pairs * size / kLanes);
  Bits *queries = scratch.take<Bits>(kBlock * size / 2 / kLanes);
  Floats *scores = scratch.take<Floats>((int64_t)length * kBlock / kLanes);
  Bits *weights = scratch.take<Bits>(n_pairs * kBlock / kLanes);
  Floats *tops = scratch.take<Floats>(kBlock / kLanes), *factors = scratch.take<Floats>(kBlock / kLanes);
  Exponential exponential(size);
  copy_rows(qkv + hidden, stride, length, size, keys);
  read_row_pairs(qkv + 2 * hidden, stride, length, size, values);
  for (int start = 0; start < length; start += kBlock) {
    int m = length - start < kBlock ? length - start : kBlock, n_vectors = (m + kLanes - 1) / kLanes;
    read_columns(qkv + start * stride, stride, m, size, n_vectors, queries);
    score(keys, length, size, queries, n_vectors, scores, tops);
    for (int j = 0; j < n_vectors; j++) {
      Floats top = tops[j], sum = {};
      for (int64_t i = 0; i < n_pairs; i++) {
        const Floats *place = scores + 2 * i * n_vectors + j;
        Floats even = exponential(place[0], top), odd = {};
        if (2 * i + 1 < length) odd = exponential(place[n_vectors], top);
        sum += even + odd;
        weights[i * n_vectors + j] = round_pair(even, odd);
      }
      factors[j] = 1.0f / sum;
    }
    const float *factor = (const float *)factors;
    product(m, size / kLanes, n_pairs, Factors{(const uint32_t *)weights, 1, n_vectors * kLanes}, values,
            [=](int64_t query, int vector, Floats sums) __attribute__((always_inline)) {
              NativeBFloat16::store(attended + (start + query) * hidden + vector * kLanes,
                                    sums * factor[query]);
            });
  }
}

/* ---- Its gradient ------------------------------------------------------------------------------------ */

INLINE int64_t floats_for_backward(int64_t length, int64_t size) {
  int64_t n_pairs = (length + 1) / 2;
  return 8 * n_pairs * size + kBlock * (2 * size + 3 * length + n_pairs + 1) + 15 * kLanes;
}

/* From scores and the gradient of probabilities, a query in each of m lanes: probabilities and the gradient
 * of scores, (length, 8 * n_vectors) pairs of neighbouring queries, and the latter as pairs of neighbouring
 * keys too */
static void differentiate_softmax(Floats *scores, const Floats *tops, const Floats *of_probabilities,
                                  int length, int m, int n_vectors, Exponential exponential,
                                  uint16_t *probabilities, uint16_t *of_scores, Bits *of_score_pairs) {
  int64_t width = n_vectors * kLanes;
  Ints lanes;
  for (int lane = 0; lane < kLanes; lane++) lanes[lane] = lane;
  for (int64_t j = 0; j < n_vectors; j++) {
    Ints has_query = lanes < (int)(m - j * kLanes); /* in others infinite keys make NaN */
    Floats sum = {}, mean = {};
    for (int64_t i = 0; i < length; i++) {
      Floats *place = scores + i * n_vectors + j;
      *place = exponential(*place, tops[j]);
      sum += *place;
      mean += *place * of_probabilities[i * n_vectors + j];
    }
    Floats factor = 1.0f / sum;
    mean *= factor;
    auto gradient = [=](int64_t key) __attribute__((always_inline)) {
      Floats probability = scores[key * n_vectors + j] * factor;
      Floats of_score = probability * (of_probabilities[key * n_vectors + j] - mean);
      probability = has_query ? probability : Floats{};
      of_score = has_query ? of_score : Floats{};
      NativeBFloat16::store(probabilities + key * width + j * kLanes, probability);
      NativeBFloat16::store(of_scores + key * width + j * kLanes, of_score);
      return of_score;
    };
    for (int64_t i = 0; i < (length + 1) / 2; i++) {
      Floats even = gradient(2 * i), odd = {};
      if (2 * i + 1 < length) odd = gradient(2 * i + 1);
      of_score_pairs[i * n_vectors + j] = round_pair(even, odd);
    }
  }
}

/* sums (length, size) += of (length, n_vectors * 16) @ rows, these as pairs of the first m */
static void add_products(const uint16_t *of, int length, int n_vectors, int m, const Bits *row_pairs,
                         int size, Floats *sums) {
  int n = size / kLanes;
  product(length, n, (m + 1) / 2, Factors{(const uint32_t *)of, n_vectors * kLanes / 2, 1}, row_pairs,
          [=](int64_t row, int vector, Floats values)
              __attribute__((always_inline)) { sums[row * n + vector] += values; });
}

static void write_rows(const float *rows, int m, int size, float factor, uint16_t *x, int64_t stride) {
  for (int i = 0; i < m; i++)
    for (int d = 0; d < size; d += kLanes)
      NativeBFloat16::store(x + i * stride + d, Float32::load(rows + i * size + d) * factor);
}

/* The probabilities are computed again instead of kept, as in FlashAttention (Dao et al., 2022,
 * arXiv:2205.14135). */
static void attend_backward(const uint16_t *qkv, const uint16_t *of_attended, uint16_t *of_qkv, int length,
                            int64_t hidden, int size, Scratch scratch) {
  int64_t stride = 3 * hidden, n_pairs = (length + 1) / 2, all = (int64_t)length * size;
  uint16_t *keys = scratch.take<uint16_t>(all), *values = scratch.take<uint16_t>(all);
  Bits *key_pairs = scratch.take<Bits>(n_pairs * size / kLanes);
  Floats *of_keys = scratch.take<Floats>(all / kLanes), *of_values = scratch.take<Floats>(all / kLanes);
  constexpr int kVectors = kBlock / kLanes;
  int block = kVectors * size / 2;
  Bits *queries = scratch.take<Bits>(block), *query_pairs = scratch.take<Bits>(block);
  Bits *of_block = scratch.take<Bits>(block), *of_block_pairs = scratch.take<Bits>(block);
  Floats *scores = scratch.take<Floats>((int64_t)length * kVectors), *tops = scratch.take<Floats>(kVectors);
  Floats *of_probabilities = scratch.take<Floats>((int64_t)length * kVectors);
  uint16_t *probabilities = scratch.take<uint16_t>((int64_t)length * kBlock);
  uint16_t *of_scores = scratch.take<uint16_t>((int64_t)length * kBlock);
  Bits *of_score_pairs = scratch.take<Bits>(n_pairs * kVectors);
  float scale = 1.0f / sqrtf(size);
  copy_rows(qkv + hidden, stride, length, size, keys);
  copy_rows(qkv + 2 * hidden, stride, length, size, values);
  read_row_pairs(qkv + hidden, stride, length, size, key_pairs);
  memset(of_keys, 0, all * sizeof(float));
  memset(of_values, 0, all * sizeof(float));
  for (int start = 0; start < length; start += kBlock) {
    int m = length - start < kBlock ? length - start : kBlock, n_vectors = (m + kLanes - 1) / kLanes;
    const uint16_t *own = qkv + start * stride, *of_own = of_attended + start * hidden;
    read_columns(own, stride, m, size, n_vectors, queries);
    read_row_pairs(own, stride, m, size, query_pairs);
    read_columns(of_own, hidden, m, size, n_vectors, of_block);
    read_row_pairs(of_own, hidden, m, size, of_block_pairs);
    score(keys, length, size, queries, n_vectors, scores, tops);
    multiply(values, length, size, of_block, n_vectors, of_probabilities, [](int, Floats) {});
    differentiate_softmax(scores, tops, of_probabilities, length, m, n_vectors, Exponential(size),
                          probabilities, of_scores, of_score_pairs);
    add_products(probabilities, length, n_vectors, m, of_block_pairs, size, of_values);
    add_products(of_scores, length, n_vectors, m, query_pairs, size, of_keys);
    product(m, size / kLanes, n_pairs, Factors{(const uint32_t *)of_score_pairs, 1, n_vectors * kLanes},
            key_pairs, [=](int64_t query, int vector, Floats sums) __attribute__((always_inline)) {
              NativeBFloat16::store(of_qkv + (start + query) * stride + vector * kLanes, sums * scale);
            });
  }
  write_rows((const float *)of_keys, length, size, scale, of_qkv + hidden, stride);
  write_rows((const float *)of_values, length, size, 1.0f, of_qkv + 2 * hidden, stride);
}

/* As attention_forward and attention_backward of attention.cpp for bfloat16; size is a multiple of 32 */
extern "C" int paired_attention_forward(const void *qkv, void *attended, const int32_t *offsets,
                                        int64_t n_slots, int n_sequences, int n_heads, int size,
                                        int n_threads) {
  return attend_in_each_head<uint16_t>(qkv, attended, offsets, n_slots, n_sequences, n_heads, size, n_threads,
                                       floats_for_forward(longest_of(offsets, n_sequences), size), attend);
}

extern "C" int paired_attention_backward(const void *qkv, const void *of_attended, void *of_qkv,
                                         const int32_t *offsets, int64_t n_slots, int n_sequences,
                                         int n_heads, int size, int n_threads) {
  return attend_backward_in_each_head<uint16_t>(
      qkv, of_attended, of_qkv, offsets, n_slots, n_sequences, n_heads, size, n_threads,
      floats_for_backward(longest_of(offsets, n_sequences), size), attend_backward);
}

/* Of a head that paired attention takes, the size is a multiple of this; 0 where there is no such attention.
 */
extern "C" int paired_attention_step() { return instructions().bfloat16 ? 32 : 0; }
#else
extern "C" int paired_attention_step() { return 0; }
#endif
