/* The parts of a layer that take each token by itself, in 8-bit integers on AVX-512 VNNI.

A row of activations is taken as least + scale * (0 to 255), by its own extremes; a row of a weight as scale *
(-127 to 127). Integers are multiplied and added exactly; the results, and all between the products, are
floats. From the attention to the end of a layer a block of tokens stays in the cache.
*/
#include "vectors.hpp"

#if defined(__AVX512VNNI__)
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

constexpr int kTile = 6;   /* tokens whose sums are kept in registers, with ... */
constexpr int kStrip = 64; /* ... so many columns of a weight */
constexpr int kBlock = 24; /* tokens that a thread takes through a layer at once */
constexpr int kVectors = kStrip / kLanes;

/* So that sums stay in registers. */
#define UNROLL _Pragma("GCC unroll 32")

/* (n, depth), its numbers as (n / 64, depth / 4, 64, 4); `sums` are those of the scaled rows. */
struct Matrix {
  const int8_t *numbers;
  const float *scales, *sums, *bias;
  int64_t n, depth;
};

struct Norm {
  const float *weight, *bias;
};

/* What follows attention in a layer. */
struct Layer {
  Matrix attention_output, intermediate, output;
  Norm attention_norm, output_norm;
  float epsilon;
};

/* Rows of 8-bit numbers. */
struct Rows {
  uint8_t *numbers;
  float *scales, *least;
};

/* The threads that share a block of tokens. */
struct Team {
  int member, size;
  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};

/* GELU within 2.5e-4, which is less than the step of the 8-bit numbers that it becomes: on [-4, 4] by a
 * polynomial for P(X <= x) = 1/2 + x p(x^2), fitted for the least largest error. */
INLINE Floats short_gelu(Floats x) {
  Floats inside = x > 4.0f ? Floats{} + 4.0f : x;
  x = x < -4.0f ? Floats{} - 4.0f : x;
  inside = inside < -4.0f ? Floats{} - 4.0f : inside;
  Floats square = inside * inside;
  Floats sum = square * -1.30126698e-09f + 1.04194449e-07f;
  sum = sum * square - 3.6570957e-06f;
  sum = sum * square + 7.48546008e-05f;
  sum = sum * square - 0.00100648752f;
  sum = sum * square + 0.00950538833f;
  sum = sum * square - 0.0658878237f;
  sum = sum * square + 0.398673385f;
  return x * (sum * inside + 0.5f);
}

/* Read n numbers, a multiple of 16, as row `row` of `to`. What is not finite gives NaN as the scale. */
template <class Format>
INLINE void quantize(const typename Format::Number *x, int64_t n, const Rows &to, int64_t row) {
  Floats least = Format::load(x), most = least, sum = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = Format::load(x + i);
    least = value < least ? value : least;
    most = value > most ? value : most;
    sum += value;
  }
  float low = _mm512_reduce_min_ps((__m512)least), high = _mm512_reduce_max_ps((__m512)most);
  float scale = (high - low) / 255, inverse = scale > 0 ? 1 / scale : 0;
  Floats shift = Floats{} + (0.5f - low * inverse); /* 1/2: conversion cuts off */
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = Format::load(x + i) * inverse + shift;
    __m512i whole = _mm512_cvttps_epi32((__m512)value);
    whole = _mm512_max_epi32(whole, _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)(to.numbers + row * n + i), _mm512_cvtusepi32_epi8(whole));
  }
  to.scales[row] = scale + 0 * _mm512_reduce_add_ps((__m512)sum);
  to.least[row] = low;
}

/* sums += the products of four neighbouring 0 to 255 with four -127 to 127. As GCC's own function it copies
 * each sum in each step. */
INLINE void add_products(__m512i &sums, __m512i x, __m512i weight) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
}

/* finish(row, column, values) for the products of the rows from `first` on, but none from n_rows on, with a strip
 * of a weight */
template <class Finish>
INLINE void tile(const Rows &x, int64_t first, int n_rows, const Matrix &weight, int64_t column,
                 Finish finish) {
  const uint8_t *rows = x.numbers + first * weight.depth;
  const int8_t *numbers = weight.numbers + column * weight.depth;
  __m512i sums[kTile][kVectors];
  UNROLL
  for (int i = 0; i < kTile * kVectors; i++) sums[i / kVectors][i % kVectors] = _mm512_setzero_si512();
  for (int64_t k = 0; k < weight.depth; k += 4, numbers += 4 * kStrip) {
    __m512i values[kVectors];
    UNROLL
    for (int j = 0; j < kVectors; j++) values[j] = _mm512_loadu_si512(numbers + j * 64);
    UNROLL
    for (int i = 0; i < kTile; i++) {
      int32_t four;
      memcpy(&four, rows + i * weight.depth + k, sizeof four);
      __m512i factor = _mm512_set1_epi32(four);
      UNROLL
      for (int j = 0; j < kVectors; j++) add_products(sums[i][j], factor, values[j]);
    }
  }
  UNROLL
  for (int j = 0; j < kVectors; j++) {
    int64_t place = column + j * kLanes;
    Floats scale = Float32::load(weight.scales + place), sum = Float32::load(weight.sums + place);
    Floats bias = Float32::load(weight.bias + place);
    UNROLL
    for (int i = 0; i < kTile; i++) {
      if (first + i >= n_rows) break;
      Floats value = (Floats)_mm512_cvtepi32_ps(sums[i][j]) * scale * x.scales[first + i];
      finish(first + i, place, value + (sum * x.least[first + i] + bias));
    }
  }
}

/* finish(row, column, values) for the products of n_rows rows with the team member's share of a weight */
template <class Finish>
INLINE void multiply(const Team &team, const Rows &x, int n_rows, const Matrix &weight, Finish finish) {
  int64_t n_strips = weight.n / kStrip;
  int64_t stop = n_strips * (team.member + 1) / team.size;
  for (int64_t strip = n_strips * team.member / team.size; strip < stop; strip++)
    for (int row = 0; row < n_rows; row += kTile) tile(x, row, n_rows, weight, strip * kStrip, finish);
}

/* Layer norm of n numbers in place (Ba, Kiros & Hinton, 2016, arXiv:1607.06450). */
INLINE void normalize(float *x, int64_t n, const Norm &norm, float epsilon) {
  Floats sum = {}, squares = {};
  for (int64_t i = 0; i < n; i += kLanes) sum += Float32::load(x + i);
  float mean = _mm512_reduce_add_ps((__m512)sum) / n;
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = Float32::load(x + i) - mean;
    squares += value * value;
  }
  float factor = 1 / sqrtf(_mm512_reduce_add_ps((__m512)squares) / n + epsilon);
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = (Float32::load(x + i) - mean) * factor;
    Float32::store(x + i, value * Float32::load(norm.weight + i) + Float32::load(norm.bias + i));
  }
}

/* Memory for a block of tokens, each part at a whole cache line. */
struct Space {
  char *next;
  template <class Number>
  Number *take(int64_t n) {
    Number *part = (Number *)next;
    next += (n * sizeof(Number) + 63) / 64 * 64;
    return part;
  }
  Rows rows(int64_t depth) {
    return Rows{take<uint8_t>(kBlock * depth), take<float>(kBlock), take<float>(kBlock)};
  }
};

INLINE int64_t bytes_for_rows(int64_t depth) { return kBlock * depth + 2 * kBlock * 4 + 3 * 64; }

static void multiply_block(Team team, const uint16_t *x, const Matrix &weight, uint16_t *y, int n_rows,
                           Space space) {
  Rows rows = space.rows(weight.depth);
  for (int row = team.member; row < n_rows; row += team.size)
    quantize<BFloat16>(x + row * weight.depth, weight.depth, rows, row);
  team.wait();
  multiply(team, rows, n_rows, weight,
           [=](int64_t row, int64_t column, Floats value)
               __attribute__((always_inline)) { BFloat16::store(y + row * weight.n + column, value); });
  team.wait(); /* until nobody reads the rows */
}

static void finish_block(Team team, const uint16_t *attended, const uint16_t *hidden, const Layer &layer,
                         uint16_t *result, int n_rows, Space space) {
  int64_t size = layer.output.n, wide = layer.output.depth;
  Rows rows = space.rows(size), wide_rows = space.rows(wide);
  float *states = space.take<float>(kBlock * size), *inner = space.take<float>(kBlock * wide);
  for (int row = team.member; row < n_rows; row += team.size)
    quantize<BFloat16>(attended + row * size, size, rows, row);
  team.wait();
  multiply(team, rows, n_rows, layer.attention_output,
           [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
             int64_t place = row * size + column;
             Float32::store(states + place, value + BFloat16::load(hidden + place));
           });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size) {
    normalize(states + row * size, size, layer.attention_norm, layer.epsilon);
    quantize<Float32>(states + row * size, size, rows, row);
  }
  team.wait();
  multiply(team, rows, n_rows, layer.intermediate,
           [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
             Float32::store(inner + row * wide + column, short_gelu(value));
           });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size)
    quantize<Float32>(inner + row * wide, wide, wide_rows, row);
  team.wait();
  multiply(team, wide_rows, n_rows, layer.output,
           [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
             float *place = states + row * size + column;
             Float32::store(place, value + Float32::load(place));
           });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size) {
    float *state = states + row * size;
    normalize(state, size, layer.output_norm, layer.epsilon);
    for (int64_t i = 0; i < size; i += kLanes)
      BFloat16::store(result + row * size + i, Float32::load(state + i));
  }
}

/* compute(team, first token, number of tokens, space) for all tokens; each thread takes blocks, or where
there is one block all share it. Returns 1 where the memory is too small. */
template <class Compute>
INLINE int for_each_block(int64_t n_tokens, int64_t n_bytes, int n_threads, Compute compute) {
  bool is_shared = n_tokens <= kBlock;
  n_bytes = (n_bytes + 4095) / 4096 * 4096;
  char *bytes = (char *)aligned_alloc(4096, (is_shared ? 1 : n_threads) * n_bytes);
  if (!bytes) return 1;
  if (is_shared) {
#pragma omp parallel num_threads(n_threads)
    compute(Team{omp_get_thread_num(), omp_get_num_threads()}, 0, (int)n_tokens, Space{bytes});
  } else {
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t start = 0; start < n_tokens; start += kBlock) {
      int n_rows = n_tokens - start < kBlock ? n_tokens - start : kBlock;
      compute(Team{0, 1}, start, n_rows, Space{bytes + omp_get_thread_num() * n_bytes});
    }
  }
  free(bytes);
  return 0;
}

/* y (n_tokens, weight.n) = x (n_tokens, weight.depth) @ weight' + bias; x and y in bfloat16 */
extern "C" int int8_product(const uint16_t *x, uint16_t *y, const Matrix *weight, int64_t n_tokens,
                            int n_threads) {
  return for_each_block(n_tokens, bytes_for_rows(weight->depth), n_threads,
                        [=](Team team, int64_t start, int n_rows, Space space) {
                          multiply_block(team, x + start * weight->depth, *weight, y + start * weight->n,
                                         n_rows, space);
                        });
}

/* The states behind a layer, of what attention returned in it and of the states before it: all bfloat16
 * (n_tokens, hidden size). */
extern "C" int int8_after_attention(const uint16_t *attended, const uint16_t *hidden, uint16_t *result,
                                    const Layer *layer, int64_t n_tokens, int n_threads) {
  int64_t size = layer->output.n, wide = layer->output.depth;
  int64_t n_bytes = bytes_for_rows(size) + bytes_for_rows(wide) + kBlock * (size + wide) * 4;
  return for_each_block(n_tokens, n_bytes, n_threads, [=](Team team, int64_t start, int n_rows, Space space) {
    int64_t place = start * size;
    finish_block(team, attended + place, hidden + place, *layer, result + place, n_rows, space);
  });
}

extern "C" int has_int8() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & bit_AVX512VNNI;
}

#else
extern "C" int has_int8() { return 0; }
#endif
