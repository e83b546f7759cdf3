/* The parts of a layer that take each token by itself, on AVX-512: products with weights, GELU, norms.

From the attention to the end of a layer a block of tokens stays in the cache. Factors of products are
float32, bfloat16 or 8-bit integers; a lane of a vector holds one, two or four of them, that many neighbours
of one row, and sums are exact (integers) or float32. All between the products is float32.
*/
#include "gelu.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
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

/* (n, depth), its numbers as (n / 64, depth / m, 64, m) with m neighbours in a lane. Of integers each row has
 * a scale, and `sums` are those of the scaled rows. */
struct Matrix {
  const char *numbers;
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

/* Rows of factors; integers stand for least + scale * (0 to 255). */
struct Rows {
  char *numbers;
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

/* GELU within 2.5e-4, where bfloat16 or 8 bits are next: on [-4, 4] by a polynomial for P(X <= x) = 1/2 + x
 * p(x^2), fitted for the least largest error. */
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

/* ---- Factors: how they lie in memory, are made from numbers, and multiplied
 * -------------------------------- */

template <class Number>
struct FloatFactors {
  typedef Number Format; /* of what passes between the calls */
  typedef Floats Sums;
  static constexpr int kBytes = sizeof(typename Format::Number);

  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    auto numbers = (typename Format::Number *)to.numbers + row * n;
    for (int64_t i = 0; i < n; i += kLanes) Format::store(numbers + i, From::load(x + i));
  }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &, int64_t) {
    return sums + Float32::load(weight.bias + column);
  }
};

struct Float32Factors : FloatFactors<Float32> {
  INLINE void add_products(Sums &sums, Bits x, Bits weight) { sums += (Floats)x * (Floats)weight; }
  INLINE Floats gelu(Floats x) { return gelu_of(x); }
};

struct BFloat16Factors : FloatFactors<BFloat16> {
  /* As GCC's own function it copies each sum in each step; likewise below. */
  INLINE void add_products(Sums &sums, Bits x, Bits weight) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};

struct Int8Factors {
  typedef BFloat16 Format;
  typedef Ints Sums;
  static constexpr int kBytes = 1;

  /* What is not finite gives NaN as the scale. */
  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    Floats least = From::load(x), most = least, sum = {};
    for (int64_t i = 0; i < n; i += kLanes) {
      Floats value = From::load(x + i);
      least = value < least ? value : least;
      most = value > most ? value : most;
      sum += value;
    }
    float low = _mm512_reduce_min_ps((__m512)least), high = _mm512_reduce_max_ps((__m512)most);
    float scale = (high - low) / 255, inverse = scale > 0 ? 1 / scale : 0;
    Floats shift = Floats{} + (0.5f - low * inverse); /* 1/2: conversion cuts off */
    for (int64_t i = 0; i < n; i += kLanes) {
      __m512i whole = _mm512_cvttps_epi32((__m512)(From::load(x + i) * inverse + shift));
      whole = _mm512_max_epi32(whole, _mm512_setzero_si512());
      _mm_storeu_si128((__m128i *)(to.numbers + row * n + i), _mm512_cvtusepi32_epi8(whole));
    }
    to.scales[row] = scale + 0 * _mm512_reduce_add_ps((__m512)sum);
    to.least[row] = low;
  }
  INLINE void add_products(Sums &sums, Bits x, Bits weight) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
  }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &x, int64_t row) {
    Floats scaled = __builtin_convertvector(sums, Floats) * Float32::load(weight.scales + column);
    Floats rest = Float32::load(weight.sums + column) * x.least[row] + Float32::load(weight.bias + column);
    return scaled * x.scales[row] + rest;
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};

/* ---- Products
 * ---------------------------------------------------------------------------------------------- */

INLINE Bits load_lanes(const char *place) {
  typedef Bits Unaligned __attribute__((aligned(1)));
  return *(const Unaligned *)place;
}

/* finish(row, column, values) for the products of the rows from `first` on, but none from n_rows on, with a
 * strip of a weight; meanwhile what is `ahead` comes into the cache */
template <class Factors, class Finish>
INLINE void tile(const Rows &x, int64_t first, int n_rows, const Matrix &weight, int64_t column,
                 const char *ahead, Finish finish) {
  int64_t row_bytes = weight.depth * Factors::kBytes;
  const char *rows = x.numbers + first * row_bytes, *numbers = weight.numbers + column * row_bytes;
  typename Factors::Sums sums[kTile][kVectors];
  UNROLL
  for (int i = 0; i < kTile * kVectors; i++) sums[i / kVectors][i % kVectors] = typename Factors::Sums{};
  for (int64_t k = 0; k < row_bytes; k += 4, numbers += 4 * kStrip, ahead += 64) {
    __builtin_prefetch(ahead);
    Bits values[kVectors];
    UNROLL
    for (int j = 0; j < kVectors; j++) values[j] = load_lanes(numbers + j * 64);
    UNROLL
    for (int i = 0; i < kTile; i++) {
      uint32_t neighbours;
      memcpy(&neighbours, rows + i * row_bytes + k, sizeof neighbours);
      Bits factor = Bits{} + neighbours;
      UNROLL
      for (int j = 0; j < kVectors; j++) Factors::add_products(sums[i][j], factor, values[j]);
    }
  }
  UNROLL
  for (int j = 0; j < kVectors; j++) {
    int64_t place = column + j * kLanes;
    UNROLL
    for (int i = 0; i < kTile; i++) {
      if (first + i >= n_rows) break;
      finish(first + i, place, Factors::value(sums[i][j], weight, place, x, first + i));
    }
  }
}

/* finish(row, column, values) for the products of n_rows rows with the team member's share of a weight */
template <class Factors, class Finish>
INLINE void multiply(const Team &team, const Rows &x, int n_rows, const Matrix &weight, Finish finish) {
  int64_t n_strips = weight.n / kStrip, strip_bytes = weight.depth * Factors::kBytes * kStrip;
  int64_t stop = n_strips * (team.member + 1) / team.size;
  for (int64_t strip = n_strips * team.member / team.size; strip < stop; strip++) {
    const char *next = weight.numbers + (strip + 1) % n_strips * strip_bytes; /* a part during each tile */
    for (int row = 0; row < n_rows; row += kTile, next += strip_bytes / (kBlock / kTile))
      tile<Factors>(x, row, n_rows, weight, strip * kStrip, next, finish);
  }
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

/* ---- Blocks of tokens
 * -------------------------------------------------------------------------------------- */

/* Memory for a block, each part at a whole cache line. */
struct Space {
  char *next;
  template <class Number>
  Number *take(int64_t n) {
    Number *part = (Number *)next;
    next += (n * sizeof(Number) + 63) / 64 * 64;
    return part;
  }
  Rows rows(int64_t row_bytes) {
    return Rows{take<char>(kBlock * row_bytes), take<float>(kBlock), take<float>(kBlock)};
  }
};

INLINE int64_t bytes_for_rows(int64_t row_bytes) { return kBlock * row_bytes + 2 * kBlock * 4 + 3 * 64; }

template <class Factors>
static void multiply_block(Team team, const typename Factors::Format::Number *x, const Matrix &weight,
                           typename Factors::Format::Number *y, int n_rows, Space space) {
  typedef typename Factors::Format Format;
  Rows rows = space.rows(weight.depth * Factors::kBytes);
  for (int row = team.member; row < n_rows; row += team.size)
    Factors::template read<Format>(x + row * weight.depth, weight.depth, rows, row);
  team.wait();
  multiply<Factors>(team, rows, n_rows, weight,
                    [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                      Format::store(y + row * weight.n + column, value);
                    });
}

template <class Factors>
static void finish_block(Team team, const typename Factors::Format::Number *attended,
                         const typename Factors::Format::Number *hidden, const Layer &layer,
                         typename Factors::Format::Number *result, int n_rows, Space space) {
  typedef typename Factors::Format Format;
  int64_t size = layer.output.n, wide = layer.output.depth;
  Rows rows = space.rows(size * Factors::kBytes), wide_rows = space.rows(wide * Factors::kBytes);
  float *states = space.take<float>(kBlock * size), *inner = space.take<float>(kBlock * wide);
  for (int row = team.member; row < n_rows; row += team.size)
    Factors::template read<Format>(attended + row * size, size, rows, row);
  team.wait();
  multiply<Factors>(team, rows, n_rows, layer.attention_output,
                    [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                      int64_t place = row * size + column;
                      Float32::store(states + place, value + Format::load(hidden + place));
                    });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size) {
    normalize(states + row * size, size, layer.attention_norm, layer.epsilon);
    Factors::template read<Float32>(states + row * size, size, rows, row);
  }
  team.wait();
  multiply<Factors>(team, rows, n_rows, layer.intermediate,
                    [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                      Float32::store(inner + row * wide + column, Factors::gelu(value));
                    });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size)
    Factors::template read<Float32>(inner + row * wide, wide, wide_rows, row);
  team.wait();
  multiply<Factors>(team, wide_rows, n_rows, layer.output,
                    [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                      float *place = states + row * size + column;
                      Float32::store(place, value + Float32::load(place));
                    });
  team.wait();
  for (int row = team.member; row < n_rows; row += team.size) {
    float *state = states + row * size;
    normalize(state, size, layer.output_norm, layer.epsilon);
    for (int64_t i = 0; i < size; i += kLanes)
      Format::store(result + row * size + i, Float32::load(state + i));
  }
}

/* compute(team, first token, number of tokens, space) for all tokens; each thread takes blocks, or where
 * there is one block all share it. Returns 1 where the memory is too small. */
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

template <class Factors>
static int product(const void *x, void *y, const Matrix *weight, int64_t n_tokens, int n_threads) {
  typedef typename Factors::Format::Number Number;
  return for_each_block(n_tokens, bytes_for_rows(weight->depth * Factors::kBytes), n_threads,
                        [=](Team team, int64_t start, int n_rows, Space space) {
                          multiply_block<Factors>(team, (const Number *)x + start * weight->depth, *weight,
                                                  (Number *)y + start * weight->n, n_rows, space);
                        });
}

template <class Factors>
static int after_attention(const void *attended, const void *hidden, void *result, const Layer *layer,
                           int64_t n_tokens, int n_threads) {
  typedef typename Factors::Format::Number Number;
  int64_t size = layer->output.n, wide = layer->output.depth;
  int64_t n_bytes = bytes_for_rows(size * Factors::kBytes) + bytes_for_rows(wide * Factors::kBytes) +
                    kBlock * (size + wide) * 4;
  return for_each_block(n_tokens, n_bytes, n_threads, [=](Team team, int64_t start, int n_rows, Space space) {
    int64_t place = start * size;
    finish_block<Factors>(team, (const Number *)attended + place, (const Number *)hidden + place, *layer,
                          (Number *)result + place, n_rows, space);
  });
}

/* y (n_tokens, weight.n) = x (n_tokens, weight.depth) @ weight' + bias. The factors have so many bytes: 4
 * float32, 2 bfloat16, 1 integers; x and y are float32 in the first case, else bfloat16. */
extern "C" int layer_product(const void *x, void *y, const Matrix *weight, int factor_bytes, int64_t n_tokens,
                             int n_threads) {
  auto run = factor_bytes == 4   ? product<Float32Factors>
             : factor_bytes == 2 ? product<BFloat16Factors>
                                 : product<Int8Factors>;
  return run(x, y, weight, n_tokens, n_threads);
}

/* The states behind a layer, of what attention returned in it and of the states before it: all (n_tokens,
 * hidden size), in the precision of layer_product. */
extern "C" int layer_after_attention(const void *attended, const void *hidden, void *result,
                                     const Layer *layer, int factor_bytes, int64_t n_tokens, int n_threads) {
  auto run = factor_bytes == 4   ? after_attention<Float32Factors>
             : factor_bytes == 2 ? after_attention<BFloat16Factors>
                                 : after_attention<Int8Factors>;
  return run(attended, hidden, result, layer, n_tokens, n_threads);
}

/* Tell whether the processor can multiply factors of so many bytes. */
extern "C" int has_layers(int factor_bytes) {
  unsigned a, b, c, d;
  if (factor_bytes == 1) return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & bit_AVX512VNNI;
  if (factor_bytes == 2) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & bit_AVX512BF16;
  return factor_bytes == 4;
}

#else
extern "C" int has_layers(int) { return 0; }
#endif
