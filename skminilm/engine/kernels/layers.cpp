/* The parts of a layer that take each token by itself, on AVX2 and AVX-512: products with weights, GELU,
norms.

From the attention to the end of a layer a block of tokens stays in the cache. Factors of products are
float32, bfloat16 or 8-bit integers; a lane of a vector holds one, two or four of them, that many neighbours
of one row, and sums are exact (integers) or float32. All between the products is float32.
*/
#include "gelu.hpp"

#if defined(__AVX2__)
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

/* What is kept in registers, of which there are 32 or 16: sums of so many tokens with so many vectors of
 * columns. */
constexpr int kTile = 6;
constexpr int kVectors = kLanes == 16 ? 4 : 2;
constexpr int kStrip = kVectors * kLanes; /* columns of a weight that lie together */
constexpr int kBlock = 48; /* tokens that a thread takes through a layer at once, at the most */

/* So that sums stay in registers. */
#define UNROLL _Pragma("GCC unroll 32")

/* (n, depth), its numbers as (n / kStrip, depth / m, kStrip, m) with m neighbours in a lane. Of integers each
 * row has a scale, and `sums` are those of the scaled rows. */
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

/* The threads that share a block of tokens, of so many in all teams. All teams wait for each other. */
struct Team {
  int member, size, n_threads;
  void wait() const {
    if (n_threads > 1) {
#pragma omp barrier
    }
  }
};

/* GELU within 1.4e-4 or 3.5e-5 of it, where bfloat16 or 8 bits are next: on [-4, 4] by a polynomial for P(X
 * <= x) = 1/2 + x p(x^2), fitted for the least largest error. */
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

/* ---- Factors: how they lie in memory, are made from numbers, and multiplied ----- */

/* Store integers as bytes, those beyond 0 or 255 as these. */
INLINE void store_bytes(char *place, Ints x) {
#if defined(__AVX512F__)
  x = x < 0 ? Ints{} : x;
  _mm_storeu_si128((__m128i *)place, _mm512_cvtusepi32_epi8((__m512i)x));
#else
  __m256i halves = _mm256_packus_epi32((__m256i)x, (__m256i)x), bytes = _mm256_packus_epi16(halves, halves);
  int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
  memcpy(place, &low, 4);
  memcpy(place + 4, &high, 4);
#endif
}

/* Not inlined: with these loops in it GCC keeps a tile's sums in memory. */
#define APART static __attribute__((noinline))

APART float least_of(Floats x) {
  float least = x[0];
  for (int lane = 1; lane < kLanes; lane++) least = x[lane] < least ? x[lane] : least;
  return least;
}

APART float sum_of(Floats x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += x[lane];
  return sum;
}

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

#if defined(__AVX512BF16__)
struct BFloat16Factors : FloatFactors<BFloat16> {
  /* As GCC's own function it copies each sum in each step; likewise below. */
  INLINE void add_products(Sums &sums, Bits x, Bits weight) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct Int8Factors {
  typedef BFloat16 Format;
  typedef Ints Sums;
  static constexpr int kBytes = 1;

  /* What is not finite, or has no finite sum, gives NaN as the scale. */
  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    Floats least = From::load(x), most = least, sum = {};
    for (int64_t i = 0; i < n; i += kLanes) {
      Floats value = From::load(x + i);
      least = value < least ? value : least;
      most = value > most ? value : most;
      sum += value;
    }
    float low = least_of(least), high = -least_of(-most);
    float scale = (high - low) / 255, inverse = scale > 0 ? 1 / scale : 0;
    Floats shift = Floats{} + (0.5f - low * inverse); /* 1/2: conversion cuts off */
    for (int64_t i = 0; i < n; i += kLanes) {
      Floats value = From::load(x + i) * inverse + shift;
      store_bytes(to.numbers + row * n + i, __builtin_convertvector(value, Ints));
    }
    to.scales[row] = scale + 0 * sum_of(sum);
    to.least[row] = low;
  }
  INLINE void add_products(Sums &sums, Bits x, Bits weight) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(x), "x"(weight));
#endif
  }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &x, int64_t row) {
    Floats scaled = __builtin_convertvector(sums, Floats) * Float32::load(weight.scales + column);
    Floats rest = Float32::load(weight.sums + column) * x.least[row] + Float32::load(weight.bias + column);
    return scaled * x.scales[row] + rest;
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};
#endif

/* ---- Products ------------------------------------------------------------------- */

INLINE Bits load_lanes(const char *place) {
  typedef Bits Unaligned __attribute__((aligned(1)));
  return *(const Unaligned *)place;
}

/* finish(row, column, values) for the products of the rows from `first` on, but none from n_rows on, with a
 * strip of a weight; meanwhile what is `ahead` comes into the cache */
template <class Factors, class Finish>
INLINE void tile(const Rows &x, int64_t first, int n_rows, const Matrix &weight, int64_t column,
                 const char *ahead, int64_t ahead_step, Finish finish) {
  int64_t row_bytes = weight.depth * Factors::kBytes;
  const char *rows = x.numbers + first * row_bytes, *numbers = weight.numbers + column * row_bytes;
  typename Factors::Sums sums[kTile][kVectors];
  UNROLL
  for (int i = 0; i < kTile * kVectors; i++) sums[i / kVectors][i % kVectors] = typename Factors::Sums{};
  for (int64_t k = 0; k < row_bytes; k += 4, numbers += 4 * kStrip, ahead += ahead_step) {
    __builtin_prefetch(ahead);
    Bits values[kVectors];
    UNROLL
    for (int j = 0; j < kVectors; j++) values[j] = load_lanes(numbers + j * kLanes * 4);
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
  int n_tiles = (n_rows + kTile - 1) / kTile;
  for (int64_t strip = n_strips * team.member / team.size; strip < stop; strip++) {
    const char *next = weight.numbers + (strip + 1) % n_strips * strip_bytes; /* a part during each tile */
    for (int i = 0; i < n_tiles; i++)
      tile<Factors>(x, i * kTile, n_rows, weight, strip * kStrip, next + i * strip_bytes / n_tiles,
                    4 * kStrip / n_tiles, finish);
  }
}

/* Layer norm of n numbers in place (Ba, Kiros & Hinton, 2016, arXiv:1607.06450). */
INLINE void normalize(float *x, int64_t n, const Norm &norm, float epsilon) {
  Floats sum = {}, squares = {};
  for (int64_t i = 0; i < n; i += kLanes) sum += Float32::load(x + i);
  float mean = sum_of(sum) / n;
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = Float32::load(x + i) - mean;
    squares += value * value;
  }
  float factor = 1 / sqrtf(sum_of(squares) / n + epsilon);
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = (Float32::load(x + i) - mean) * factor;
    Float32::store(x + i, value * Float32::load(norm.weight + i) + Float32::load(norm.bias + i));
  }
}

/* ---- Blocks of tokens ----------------------------------------------------------- */

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

/* compute(team, first token, number of tokens, space) for all tokens: each thread takes blocks, or where
 * there are fewer blocks than threads, each block a team. Returns 1 where the memory is too small. */
template <class Compute>
INLINE int for_each_block(int64_t n_tokens, int64_t n_bytes, int n_threads, Compute compute) {
  /* Few tokens in large blocks: for each the weights have to come from memory. */
  int64_t most = n_tokens > kBlock * n_threads ? kBlock / 2 : kBlock;
  int64_t n_blocks = (n_tokens + most - 1) / most;
  if (n_blocks > n_threads) n_blocks = (n_blocks + n_threads - 1) / n_threads * n_threads;
  bool in_teams = n_blocks < n_threads;
  n_bytes = (n_bytes + 4095) / 4096 * 4096;
  char *bytes = (char *)aligned_alloc(4096, (in_teams ? n_blocks : n_threads) * n_bytes);
  if (n_tokens == 0 || !bytes) {
    free(bytes);
    return n_tokens > 0;
  }
  /* Whole tiles, as many for each block as for the others. */
  int64_t size = (n_tokens + n_blocks * kTile - 1) / (n_blocks * kTile) * kTile;
  auto take = [&](int64_t block, Team team, int place) {
    int64_t start = block * size, n_rows = n_tokens - start < size ? n_tokens - start : size;
    compute(team, start, n_rows > 0 ? (int)n_rows : 0, Space{bytes + place * n_bytes});
  };
  if (in_teams) {
#pragma omp parallel num_threads(n_threads)
    {
      int thread = omp_get_thread_num(), n = omp_get_num_threads();
      int n_teams = n_blocks < n ? n_blocks : n;
      for (int64_t first = 0; first < n_blocks;
           first += n_teams) { /* one round, but where the system gives fewer threads */
        int team = (int64_t)thread * n_teams / n;
        int start = (team * n + n_teams - 1) / n_teams, stop = ((team + 1) * n + n_teams - 1) / n_teams;
        take(first + team, Team{thread - start, stop - start, n}, first + team);
      }
    }
  } else {
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t block = 0; block < n_blocks; block++) take(block, Team{0, 1, 1}, omp_get_thread_num());
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

/* run(Factors) for factors of so many bytes: 4 float32, 2 bfloat16, 1 integers. */
template <class Run>
INLINE int with_factors(int factor_bytes, Run run) {
  if (factor_bytes == 4) return run(Float32Factors());
#if defined(__AVX512BF16__)
  if (factor_bytes == 2) return run(BFloat16Factors());
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  if (factor_bytes == 1) return run(Int8Factors());
#endif
  return 1;
}

/* y (n_tokens, weight.n) = x (n_tokens, weight.depth) @ weight' + bias; x and y are float32 where the factors
 * are, else bfloat16. */
extern "C" int layer_product(const void *x, void *y, const Matrix *weight, int factor_bytes, int64_t n_tokens,
                             int n_threads) {
  return with_factors(factor_bytes, [=](auto factors) {
    return product<decltype(factors)>(x, y, weight, n_tokens, n_threads);
  });
}

/* The states behind a layer, of what attention returned in it and of the states before it: all (n_tokens,
 * hidden size), in the precision of layer_product. */
extern "C" int layer_after_attention(const void *attended, const void *hidden, void *result,
                                     const Layer *layer, int factor_bytes, int64_t n_tokens, int n_threads) {
  return with_factors(factor_bytes, [=](auto factors) {
    return after_attention<decltype(factors)>(attended, hidden, result, layer, n_tokens, n_threads);
  });
}

/* Of a matrix, the columns that lie together; 0 where the processor cannot multiply factors of so many bytes.
 */
extern "C" int layer_strip(int factor_bytes) {
  bool is_there = factor_bytes == 4;
  unsigned first, a = 0, b, c, d;
  if (!__get_cpuid_count(7, 0, &first, &b, &c, &d)) return 0;
  if (first >= 1) __get_cpuid_count(7, 1, &a, &b, &first, &d);
#if defined(__AVX512BF16__)
  if (factor_bytes == 2) is_there = a & 1 << 5;
#endif
#if defined(__AVX512VNNI__)
  if (factor_bytes == 1) is_there = c & 1 << 11;
#elif defined(__AVXVNNI__)
  if (factor_bytes == 1) is_there = a & 1 << 4;
#endif
  return is_there ? kStrip : 0;
}

#else
extern "C" int layer_strip(int) { return 0; }
#endif
