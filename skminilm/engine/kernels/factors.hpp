/* Factors of products: how they lie in memory, are made from numbers, and multiplied.

They are float32, bfloat16, integers in 16 or 8 bits, or float32 as the sum of two bfloat16; a lane of a
vector holds one, two or four of them, that many neighbours of one row. Sums are exact (integers) or float32.
*/
#pragma once

#include <immintrin.h>

#include "gelu.hpp"
#include "tiles.hpp"

/* (n, depth), its numbers in the layout that the products take. Of integers each row has a scale, and of
 * those in 8 bits `sums` are those of the scaled rows. */
struct Matrix {
  const char *numbers;
  const float *scales, *sums, *bias;
  int64_t n, depth;
};

/* Rows of factors; integers in 16 bits stand for scale times them, in 8 bits for least + scale * (0 to 255).
 */
struct Rows {
  char *numbers;
  float *scales, *least;
};

/* How rows lie in memory: one after the other, */
struct RowByRow {
  INLINE char *place(const Rows &rows, int64_t row_bytes, int64_t row, int64_t byte) {
    return rows.numbers + row * row_bytes + byte;
  }
};

#if defined(TILES)
/* or as tiles, those of the same rows one after the other. */
struct TileByTile {
  INLINE char *place(const Rows &rows, int64_t row_bytes, int64_t row, int64_t byte) {
    int64_t row_in_tile = row % kTileRows, byte_in_tile = byte % kTileRowBytes;
    return rows.numbers + (row - row_in_tile) * row_bytes + byte / kTileRowBytes * kTileBytes +
           row_in_tile * kTileRowBytes + byte_in_tile;
  }
};
#endif

/* GELU within 1.4e-4 or 3.5e-5 of it, where bfloat16 or integers are next: on [-4, 4] by a polynomial for P(X
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

/* Store four vectors of integers as bytes, those beyond 0 or 255 as these. */
INLINE void store_bytes(char *place, const Ints (&x)[4]) {
#if defined(__AVX512F__)
  __m512i low = _mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]);
  __m512i high = _mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]);
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(place, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
#else
  __m256i low = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]);
  __m256i high = _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]);
  __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i *)place, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
#endif
}

/* Vectors of a row that are read in one step; all rows are a multiple of so many long. */
constexpr int kChains = 4;

/* Store four vectors of integers in 16 bits each, rounded to the nearest. */
INLINE void store_rounded(char *place, const Floats (&x)[kChains]) {
#if defined(__AVX512F__)
  UNROLL
  for (int j = 0; j < kChains; j++) {
    __m256i halves = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)x[j]));
    _mm256_storeu_si256((__m256i *)place + j, halves);
  }
#else
  UNROLL
  for (int j = 0; j < kChains; j += 2) {
    __m256i low = _mm256_cvtps_epi32((__m256)x[j]), high = _mm256_cvtps_epi32((__m256)x[j + 1]);
    __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i *)place + j / 2, halves);
  }
#endif
}

/* Not inlined: with these loops in it GCC keeps a tile's sums in memory. */
#define APART static __attribute__((noinline))

APART float least_of(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps((__m512)x);
#else
  float least = x[0];
  for (int lane = 1; lane < kLanes; lane++) least = x[lane] < least ? x[lane] : least;
  return least;
#endif
}

APART float sum_of(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int lane = 0; lane < kLanes; lane++) sum += x[lane];
  return sum;
#endif
}

/* Of neighbours in each lane one is a step; here any number of steps can follow each other. */
struct InOneStep {
  static constexpr int kSteps = 1;
  template <class Sums>
  INLINE void end_steps(Sums &) {}
};

template <class Layout, class Format_, class Part_, int kParts_>
struct FloatFactors : InOneStep {
  typedef Format_ Format; /* of what passes between the calls */
  typedef Part_ Part;     /* as which a number lies here, once or twice */
  typedef Floats Sums;
  static constexpr int kParts = kParts_, kBytes = kParts * sizeof(typename Part::Number);
  static constexpr bool kByRow = false; /* a row can be stored in any order */

  INLINE void store(const Rows &to, int64_t row, int64_t n, int64_t column, Floats values) {
    typedef typename Part::Number Number;
    auto place = (Number *)Layout::place(to, n * kBytes, row, column * sizeof(Number));
    Part::store(place, values);
    if (kParts == 1) return;
    auto next = (Number *)Layout::place(to, n * kBytes, row, (n + column) * sizeof(Number));
    Part::store(next, values - Part::load(place));
  }
  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    for (int64_t i = 0; i < n; i += kLanes) store(to, row, n, i, From::load(x + i));
  }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &, int64_t) {
    return sums + Float32::load(weight.bias + column);
  }
};

struct Float32Factors : FloatFactors<RowByRow, Float32, Float32, 1> {
  INLINE void add_products(Sums &sums, Bits x, Bits weight, int) { sums += (Floats)x * (Floats)weight; }
  INLINE Floats gelu(Floats x) { return gelu_of(x); }
};

#if defined(__AVX512BF16__)
template <class Layout>
struct BFloat16Factors : FloatFactors<Layout, NativeBFloat16, NativeBFloat16, 1> {
  /* As GCC's own function it copies each sum in each step; likewise below. */
  INLINE void add_products(Floats &sums, Bits x, Bits weight, int) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight));
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};
#endif

/* The norm that rows of integers in 16 bits may have, so that a sum of products fits into 32: it is at most
 * the product of two norms, by the inequality of Cauchy and Schwarz. Rounding to integers adds 1/2 a number
 * at the most; between 46339 and the root of 2^31 there is room for that of the norm itself. */
INLINE float largest_norm(int64_t n) { return 46339.0f - 0.5f * sqrtf(n); }

/* Squares of smaller numbers lose digits: to integers in 16 bits they are 0. */
constexpr float kSmallestScale = 1e-20f;

/* Integers in 16 bits, as many of them as 32 bits of their sums allow: some 11 to 15 bits are used, by row.
 */
template <class Instruction>
struct Int16Factors : InOneStep {
  typedef Float32 Format;
  typedef Ints Sums;
  static constexpr int kParts = 1, kBytes = 2;
  static constexpr bool kByRow = true; /* the norm of a whole row comes first */

  /* What is not finite, or has no finite norm, gives such a scale. */
  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    Floats squares[kChains] = {}, most[kChains] = {};
    for (int64_t i = 0; i < n; i += kChains * kLanes) {
      UNROLL
      for (int j = 0; j < kChains; j++) {
        Floats value = From::load(x + i + j * kLanes), size = value < 0.0f ? -value : value;
        squares[j] += value * value;
        most[j] = size > most[j] ? size : most[j];
      }
    }
    UNROLL
    for (int j = 1; j < kChains; j++) {
      squares[0] += squares[j];
      most[0] = most[j] > most[0] ? most[j] : most[0];
    }
    float scale = sqrtf(sum_of(squares[0])) / largest_norm(n), other = -least_of(-most[0]) / 32767;
    scale = other > scale ? other : scale;
    scale = scale < kSmallestScale ? kSmallestScale : scale; /* NaN stays */
    float inverse = 1 / scale;
    for (int64_t i = 0; i < n; i += kChains * kLanes) {
      Floats scaled[kChains];
      UNROLL
      for (int j = 0; j < kChains; j++) scaled[j] = From::load(x + i + j * kLanes) * inverse;
      store_rounded(RowByRow::place(to, n * kBytes, row, i * kBytes), scaled);
    }
    to.scales[row] = scale;
  }
  INLINE void add_products(Sums &sums, Bits x, Bits weight, int) {
    Instruction::add_products(sums, x, weight);
  }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &x, int64_t row) {
    Floats scaled = __builtin_convertvector(sums, Floats) * Float32::load(weight.scales + column);
    return scaled * x.scales[row] + Float32::load(weight.bias + column);
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};

/* With the instructions that all have, */
struct MultiplyThenAdd {
  INLINE void add_products(Ints &sums, Bits x, Bits weight) {
#if defined(__AVX512F__)
    sums += (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)weight);
#else
    sums += (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)weight);
#endif
  }
};

/* Integers in 8 bits: of tokens from 0 to 255, of weights from -127 to 127. */
template <class Layout, class Format_, class Instruction>
struct Int8Factors {
  typedef Format_ Format; /* of what passes between the calls */
  typedef typename Instruction::Sums Sums;
  static constexpr int kParts = 1, kBytes = 1, kSteps = Instruction::kSteps;
  static constexpr bool kByRow = true; /* the range of a whole row comes first */

  /* What is not finite, or has no finite sum, gives NaN as the scale. */
  template <class From>
  INLINE void read(const typename From::Number *x, int64_t n, const Rows &to, int64_t row) {
    /* Several of each: one alone would wait for itself. */
    Floats least[kChains], most[kChains], sums[kChains] = {};
    UNROLL
    for (int j = 0; j < kChains; j++) least[j] = most[j] = From::load(x + j * kLanes);
    for (int64_t i = 0; i < n; i += kChains * kLanes) {
      UNROLL
      for (int j = 0; j < kChains; j++) {
        Floats value = From::load(x + i + j * kLanes);
        least[j] = value < least[j] ? value : least[j];
        most[j] = value > most[j] ? value : most[j];
        sums[j] += value;
      }
    }
    UNROLL
    for (int j = 1; j < kChains; j++) {
      least[0] = least[j] < least[0] ? least[j] : least[0];
      most[0] = most[j] > most[0] ? most[j] : most[0];
      sums[0] += sums[j];
    }
    float low = least_of(least[0]), high = -least_of(-most[0]);
    float scale = (high - low) / 255, inverse = scale > 0 ? 1 / scale : 0;
    Floats shift = Floats{} + (0.5f - low * inverse); /* 1/2: conversion cuts off */
    for (int64_t i = 0; i < n; i += kChains * kLanes) {
      Ints steps[kChains];
      UNROLL
      for (int j = 0; j < kChains; j++)
        steps[j] = __builtin_convertvector(From::load(x + i + j * kLanes) * inverse + shift, Ints);
      store_bytes(Layout::place(to, n, row, i), steps);
    }
    to.scales[row] = scale + 0 * sum_of(sums[0]);
    to.least[row] = low;
  }
  INLINE void add_products(Sums &sums, Bits x, Bits weight, int step) {
    Instruction::add_products(sums, x, weight, step);
  }
  INLINE void end_steps(Sums &sums) { Instruction::end_steps(sums); }
  INLINE Floats value(Sums sums, const Matrix &weight, int64_t column, const Rows &x, int64_t row) {
    Floats scaled =
        __builtin_convertvector(Instruction::whole(sums), Floats) * Float32::load(weight.scales + column);
    Floats rest = Float32::load(weight.sums + column) * x.least[row] + Float32::load(weight.bias + column);
    return scaled * x.scales[row] + rest;
  }
  INLINE Floats gelu(Floats x) { return short_gelu(x); }
};

typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));

/* With the instructions that all have: for some steps sums of pairs in 16 bits. The rows of a weight are
 * scaled so that none leaves them. */
struct MultiplyPairsThenAdd {
  struct Sums {
    Ints whole;
    Shorts recent;
  };
  static constexpr int kSteps = 4;
  /* With GCC's own functions it computes all products of the steps first, which it then keeps in memory. */
  INLINE void add_products(Sums &sums, Bits x, Bits weight, int step) {
    Shorts products;
    if (step == 0)
      asm("vpmaddubsw %2, %1, %0" : "=v"(sums.recent) : "v"(x), "v"(weight));
    else
      asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
          : "+v"(sums.recent), "=&v"(products)
          : "v"(x), "v"(weight));
  }
  INLINE void end_steps(Sums &sums) {
    Shorts products, ones = Shorts{} + (int16_t)1;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
        : "+v"(sums.whole), "=&v"(products)
        : "v"(sums.recent), "v"(ones));
  }
  INLINE Ints whole(Sums sums) { return sums.whole; }
};

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#if defined(__AVX512VNNI__)
#define VNNI(instruction, sums, x, weight) asm(instruction " %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weight))
#else
#define VNNI(instruction, sums, x, weight) \
  asm("%{vex%} " instruction " %2, %1, %0" : "+x"(sums) : "x"(x), "x"(weight))
#endif

/* Or with the one for it: pairs of integers in 16 bits, */
struct MultiplyAddPairs {
  INLINE void add_products(Ints &sums, Bits x, Bits weight) { VNNI("vpdpwssd", sums, x, weight); }
};

/* or fours in 8 bits. */
struct MultiplyAddFours : InOneStep {
  typedef Ints Sums;
  INLINE Ints whole(Sums sums) { return sums; }
  INLINE void add_products(Ints &sums, Bits x, Bits weight, int) { VNNI("vpdpbusd", sums, x, weight); }
};
#endif

#if defined(TILES)
/* Float32 as the sum of two bfloat16, which is off by 2^-17 of it at the most. Three of their four products
are added, as the last is as small (Henry, Tang & Heinecke, 2019, arXiv:1904.06376). */
template <class Layout>
struct SplitFactors : FloatFactors<Layout, Float32, NativeBFloat16, 2> {
  INLINE Floats gelu(Floats x) { return gelu_of(x); }
};
#endif
