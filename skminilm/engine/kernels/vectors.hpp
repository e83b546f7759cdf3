/* Vectors of floats, as wide as the processor's, in the language extension of GCC. */
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8; /* narrower processors take two registers */
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

#define INLINE static inline __attribute__((always_inline))
/* So that sums stay in registers. */
#define UNROLL _Pragma("GCC unroll 32")

template <class To, class From>
INLINE To as(From x) {
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

/* Swap the two kStep x kStep blocks off the diagonal in each block of twice the size. */
template <int kStep>
INLINE void swap_blocks(Floats (&rows)[kLanes]) {
  Ints first, second;
  for (int lane = 0; lane < kLanes; lane++) {
    first[lane] = lane & kStep ? kLanes + lane - kStep : lane;
    second[lane] = lane & kStep ? kLanes + lane : lane + kStep;
  }
  for (int i = 0; i < kLanes; i++) {
    if (i & kStep) continue;
    Floats upper = rows[i], lower = rows[i + kStep];
    rows[i] = __builtin_shuffle(upper, lower, first);
    rows[i + kStep] = __builtin_shuffle(upper, lower, second);
  }
}

INLINE void transpose(Floats (&rows)[kLanes]) {
  if (kLanes == 16) swap_blocks<kLanes / 2>(rows);
  swap_blocks<4>(rows);
  swap_blocks<2>(rows);
  swap_blocks<1>(rows);
}

/* How numbers lie in memory. All arithmetic is in float32. */
struct Float32 {
  typedef float Number;
  INLINE float number(float x) { return x; }
  INLINE float rounded(float x) { return x; }
  INLINE Floats load(const float *place) {
    typedef Floats Unaligned __attribute__((aligned(4)));
    return *(const Unaligned *)place;
  }
  INLINE void store(float *place, Floats x) {
    typedef Floats Unaligned __attribute__((aligned(4)));
    *(Unaligned *)place = x;
  }
};

struct BFloat16 {
  typedef uint16_t Number;
  typedef Halves Unaligned __attribute__((aligned(2)));
  static constexpr uint16_t kNaN = 0x7fc0; /* rounded as a number, some become 0 */
  INLINE float number(uint16_t x) { return as<float>((uint32_t)x << 16); }
  INLINE uint16_t rounded(float x) {
    uint32_t bits = as<uint32_t>(x);
    if (x != x) return kNaN;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
  }
  INLINE Floats load(const uint16_t *place) {
    return (Floats)(__builtin_convertvector(*(const Unaligned *)place, Bits) << 16);
  }
  INLINE void store(uint16_t *place, Floats x) {
    Bits bits = (Bits)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = x == x ? bits : Bits{} + kNaN;
    *(Unaligned *)place = __builtin_convertvector(bits, Halves);
  }
};

#if defined(__AVX512BF16__)
/* With the instruction for it. Numbers so small that they lose digits become 0. */
struct NativeBFloat16 : BFloat16 {
  INLINE void store(uint16_t *place, Floats x) {
    *(Unaligned *)place = (Halves)_mm512_cvtneps_pbh((__m512)x);
  }
};
#endif

/* exp(x) for x <= 0, relative error 2e-7; NaN stays NaN. Never less than exp(-60): processors take a hundred
times as long to compute with numbers so small that they lose digits. */
INLINE Floats exp_of_negative(Floats x) {
  x = x < -60.0f ? Floats{} - 60.0f : x;
  Floats power = x * 1.44269504f;
  Ints whole = __builtin_convertvector(power - 0.5f, Ints); /* cut off: the nearest, as power <= 0 */
  Floats rest = power - __builtin_convertvector(whole, Floats);
  /* 2^rest by its Taylor series; |rest| <= 0.5 */
  Floats sum = rest * 1.5403530e-4f + 1.3333558e-3f;
  sum = sum * rest + 9.6181291e-3f;
  sum = sum * rest + 5.5504109e-2f;
  sum = sum * rest + 2.4022651e-1f;
  sum = sum * rest + 6.9314718e-1f;
  sum = sum * rest + 1.0f;
  return (Floats)((Ints)sum + (whole << 23));
}

#if defined(__AVX512BF16__)
/* 2^x for x <= 0, relative error 1e-4, which bfloat16 does not see. */
INLINE Floats power_of_two(Floats x) {
  x = x < -80.0f ? Floats{} - 80.0f : x; /* never so small that digits are lost: that takes long */
  Floats whole = (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Floats rest = x - whole;
  Floats sum = rest * 5.5171669e-2f + 2.4261113e-1f;
  sum = sum * rest + 6.9326097e-1f;
  sum = sum * rest + 9.9992806e-1f;
  return (Floats)_mm512_scalef_ps((__m512)sum, (__m512)whole);
}
#endif
