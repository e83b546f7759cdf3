/* Softmax attention of sequences that lie end to end in one matrix, and its gradient.

One thread takes one head of one sequence at a time. It copies what it needs
into float32, so that every loop runs over whole vectors of neighbouring
numbers. Queries come in blocks of kBlock, which bounds the memory; a query is
a lane of a vector, so that the softmax needs no sum across lanes. The
gradient computes the probabilities again instead of keeping them, as in
FlashAttention (Dao et al., 2022, arXiv:2205.14135).
*/
#include <math.h>

#include "heads.hpp"

constexpr int kBlock = 64;

/* ---- Products of small matrices: c (=, or += with kAdd) a @ b -------------
a is (m, depth) with any strides; b (depth, n) and c (m, n) have rows of
neighbouring numbers, n is a multiple of kLanes. */

template <int kRows, int kVectors, bool kAdd>
INLINE void tile(int depth, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,
                 float *c, int64_t c_row) {
  Floats sums[kRows][kVectors];
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVectors; j++) sums[i][j] = kAdd ? *(Floats *)(c + i * c_row + j * kLanes) : Floats{};
  for (int k = 0; k < depth; k++) {
    Floats values[kVectors];
    for (int j = 0; j < kVectors; j++) values[j] = *(const Floats *)(b + k * b_row + j * kLanes);
    for (int i = 0; i < kRows; i++) {
      float factor = a[i * a_row + k * a_column];
      for (int j = 0; j < kVectors; j++) sums[i][j] += factor * values[j];
    }
  }
  for (int i = 0; i < kRows; i++)
    for (int j = 0; j < kVectors; j++) *(Floats *)(c + i * c_row + j * kLanes) = sums[i][j];
}

template <int kVectors, bool kAdd>
INLINE void panel(int m, int depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
                  int64_t b_row, float *c, int64_t c_row) {
  /* Sums stay in registers, of which there are 32, or 16 on narrower processors. */
  constexpr int kRows = kLanes == 16 ? 8 : 12 / kVectors, kFewer = kRows / 2;
  int i = 0;
  for (; i + kRows <= m; i += kRows)
    tile<kRows, kVectors, kAdd>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
  for (; i + kFewer <= m; i += kFewer)
    tile<kFewer, kVectors, kAdd>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
  for (; i < m; i++)
    tile<1, kVectors, kAdd>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
}

template <bool kAdd>
static void product(int m, int n, int depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
                    int64_t b_row, float *c, int64_t c_row) {
  for (int j = 0; j < n;) {
    int vectors = (n - j) / kLanes;
    if (vectors > 3) vectors = vectors == 4 ? 2 : 3;
    if (vectors == 3) panel<3, kAdd>(m, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
    if (vectors == 2) panel<2, kAdd>(m, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
    if (vectors == 1) panel<1, kAdd>(m, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
    j += vectors * kLanes;
  }
}

/* ---- Layout --------------------------------------------------------------- */

/* rows (n_rows, size) to columns (size, n_rows); both multiples of kLanes */
static void transpose(const float *rows, int n_rows, int size, float *columns) {
  for (int i = 0; i < n_rows; i += kLanes)
    for (int d = 0; d < size; d += kLanes) {
      Floats block[kLanes];
      for (int r = 0; r < kLanes; r++) block[r] = *(const Floats *)(rows + (i + r) * size + d);
      transpose(block);
      for (int r = 0; r < kLanes; r++) *(Floats *)(columns + (d + r) * n_rows + i) = block[r];
    }
}

/* Copy m rows of a head, times a factor, and fill up to n_rows with zeros. */
template <class Format>
static void read_rows(const typename Format::Number *x, int64_t stride, int m, int n_rows, int size,
                      float factor, float *rows) {
  for (int i = 0; i < m; i++) {
    __builtin_prefetch(x + i * stride + size); /* the next head, which this thread takes next */
    for (int d = 0; d < size; d += kLanes)
      *(Floats *)(rows + i * size + d) = Format::load(x + i * stride + d) * factor;
  }
  memset(rows + m * size, 0, (size_t)(n_rows - m) * size * sizeof(float));
}

/* Write m rows of a head, each times its own factor. */
template <class Format>
INLINE void write_rows(const float *rows, int m, int size, const float *factors, typename Format::Number *x,
                       int64_t stride) {
  for (int i = 0; i < m; i++)
    for (int d = 0; d < size; d += kLanes)
      Format::store(x + i * stride + d,
                    *(const Floats *)(rows + i * size + d) * (factors ? factors[i] : 1.0f));
}

/* ---- Attention ------------------------------------------------------------ */

INLINE int up_to_lanes(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

/* Replace scores (n_keys, width), a column for each query, by exponentials, and tell 1 / the sum of each
 * column. */
static void exponentials(float *scores, int n_keys, int width, float *inverse_sums) {
  for (int lane = 0; lane < width; lane += kLanes) {
    Floats top = *(Floats *)(scores + lane);
    for (int64_t key = 1; key < n_keys; key++) {
      Floats score = *(Floats *)(scores + key * width + lane);
      top = score > top ? score : top;
    }
    Floats sum = {};
    for (int64_t key = 0; key < n_keys; key++) {
      Floats *place = (Floats *)(scores + key * width + lane);
      *place = exp_of_negative(*place - top);
      sum += *place;
    }
    *(Floats *)(inverse_sums + lane) = 1.0f / sum;
  }
}

INLINE int64_t floats_for_forward(int64_t length, int64_t size) {
  return 2 * length * size + kBlock * (3 * size + 1 + length) + 6 * kLanes;
}

INLINE int64_t floats_for_backward(int64_t length, int64_t size) {
  return 4 * length * size + kBlock * (4 * size + 1 + 2 * length) + 11 * kLanes;
}

/* One head of one sequence. Rows of qkv hold queries, keys and values of all heads: 3 * hidden numbers. */
template <class Format>
static void attend(const typename Format::Number *qkv, typename Format::Number *attended, int length,
                   int64_t hidden, int size, Scratch scratch) {
  float *keys = scratch.take((int64_t)length * size), *values = scratch.take((int64_t)length * size);
  float *queries = scratch.take(kBlock * size), *query_columns = scratch.take(kBlock * size);
  float *block = scratch.take(kBlock * size), *inverse_sums = scratch.take(kBlock);
  float *scores = scratch.take((int64_t)length * kBlock);
  int64_t stride = 3 * hidden;
  float scale = 1.0f / sqrtf(size);
  read_rows<Format>(qkv + hidden, stride, length, length, size, 1.0f, keys);
  read_rows<Format>(qkv + 2 * hidden, stride, length, length, size, 1.0f, values);
  for (int start = 0; start < length; start += kBlock) {
    int m = length - start < kBlock ? length - start : kBlock, width = up_to_lanes(m);
    read_rows<Format>(qkv + start * stride, stride, m, width, size, scale, queries);
    transpose(queries, width, size, query_columns);
    product<false>(length, width, size, keys, size, 1, query_columns, width, scores, width);
    exponentials(scores, length, width, inverse_sums);
    product<false>(m, size, length, scores, 1, width, values, size, block, size);
    write_rows<Format>(block, m, size, inverse_sums, attended + start * hidden, hidden);
  }
}

/* Replace `of_probabilities` by the gradient of the scores; exponentials become probabilities. */
static void softmax_backward(float *exponentials, const float *inverse_sums, float *of_probabilities,
                             int n_keys, int width) {
  for (int lane = 0; lane < width; lane += kLanes) {
    Floats factor = *(const Floats *)(inverse_sums + lane), mean = {};
    for (int64_t key = 0; key < n_keys; key++) {
      Floats *probability = (Floats *)(exponentials + key * width + lane);
      *probability *= factor;
      mean += *probability * *(Floats *)(of_probabilities + key * width + lane);
    }
    for (int64_t key = 0; key < n_keys; key++) {
      Floats *place = (Floats *)(of_probabilities + key * width + lane);
      *place = *(Floats *)(exponentials + key * width + lane) * (*place - mean);
    }
  }
}

template <class Format>
static void attend_backward(const typename Format::Number *qkv, const typename Format::Number *of_attended,
                            typename Format::Number *of_qkv, int length, int64_t hidden, int size,
                            Scratch scratch) {
  int64_t all = (int64_t)length * size, stride = 3 * hidden;
  float *keys = scratch.take(all), *values = scratch.take(all);
  float *of_keys = scratch.take(all), *of_values = scratch.take(all);
  float *queries = scratch.take(kBlock * size), *columns = scratch.take(kBlock * size);
  float *of_block = scratch.take(kBlock * size), *of_queries = scratch.take(kBlock * size);
  float *inverse_sums = scratch.take(kBlock);
  float *probabilities = scratch.take((int64_t)length * kBlock),
        *of_scores = scratch.take((int64_t)length * kBlock);
  float scale = 1.0f / sqrtf(size);
  read_rows<Format>(qkv + hidden, stride, length, length, size, 1.0f, keys);
  read_rows<Format>(qkv + 2 * hidden, stride, length, length, size, 1.0f, values);
  memset(of_keys, 0, all * sizeof(float));
  memset(of_values, 0, all * sizeof(float));
  for (int start = 0; start < length; start += kBlock) {
    int m = length - start < kBlock ? length - start : kBlock, width = up_to_lanes(m);
    read_rows<Format>(qkv + start * stride, stride, m, width, size, scale, queries);
    transpose(queries, width, size, columns);
    product<false>(length, width, size, keys, size, 1, columns, width, probabilities, width);
    exponentials(probabilities, length, width, inverse_sums);
    read_rows<Format>(of_attended + start * hidden, hidden, m, width, size, 1.0f, of_block);
    transpose(of_block, width, size, columns);
    product<false>(length, width, size, values, size, 1, columns, width, of_scores, width);
    softmax_backward(probabilities, inverse_sums, of_scores, length, width);
    product<true>(length, size, m, probabilities, width, 1, of_block, size, of_values, size);
    product<true>(length, size, m, of_scores, width, 1, queries, size, of_keys, size);
    product<false>(m, size, length, of_scores, 1, width, keys, size, of_queries, size);
    for (int i = 0; i < m * size; i += kLanes) *(Floats *)(of_queries + i) *= scale;
    write_rows<Format>(of_queries, m, size, nullptr, of_qkv + start * stride, stride);
  }
  write_rows<Format>(of_keys, length, size, nullptr, of_qkv + hidden, stride);
  write_rows<Format>(of_values, length, size, nullptr, of_qkv + 2 * hidden, stride);
}

/* ---- All heads of all sequences ------------------------------------------- */

template <class Format>
static int forward(const void *qkv, void *attended, const int32_t *offsets, int64_t n_slots, int n_sequences,
                   int n_heads, int size, int n_threads) {
  return attend_in_each_head<typename Format::Number>(
      qkv, attended, offsets, n_slots, n_sequences, n_heads, size, n_threads,
      floats_for_forward(longest_of(offsets, n_sequences), size), attend<Format>);
}

template <class Format>
static int backward(const void *qkv, const void *of_attended, void *of_qkv, const int32_t *offsets,
                    int64_t n_slots, int n_sequences, int n_heads, int size, int n_threads) {
  return attend_backward_in_each_head<typename Format::Number>(
      qkv, of_attended, of_qkv, offsets, n_slots, n_sequences, n_heads, size, n_threads,
      floats_for_backward(longest_of(offsets, n_sequences), size), attend_backward<Format>);
}

/* Of this interface; the caller compares it with the one that it knows. */
extern "C" int kernels_version() { return 8; }

/* qkv (n_slots, 3 * n_heads * size), attended (n_slots, n_heads * size), 0 behind the sequences; sequence i
has the tokens offsets[i] to offsets[i + 1]; size is a multiple of 16. Returns 1 where the memory is too
small. */
extern "C" int attention_forward(const void *qkv, void *attended, const int32_t *offsets, int64_t n_slots,
                                 int n_sequences, int n_heads, int size, int is_bfloat16, int n_threads) {
  auto run = is_bfloat16 ? forward<BFloat16> : forward<Float32>;
  return run(qkv, attended, offsets, n_slots, n_sequences, n_heads, size, n_threads);
}

/* of_attended and of_qkv: gradients of a loss, in the shapes of attended and qkv */
extern "C" int attention_backward(const void *qkv, const void *of_attended, void *of_qkv,
                                  const int32_t *offsets, int64_t n_slots, int n_sequences, int n_heads,
                                  int size, int is_bfloat16, int n_threads) {
  auto run = is_bfloat16 ? backward<BFloat16> : backward<Float32>;
  return run(qkv, of_attended, of_qkv, offsets, n_slots, n_sequences, n_heads, size, n_threads);
}
