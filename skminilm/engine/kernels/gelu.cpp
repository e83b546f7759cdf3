/* GELU(x) = x P(X <= x) for a standard normal X (Hendrycks & Gimpel, 2016, arXiv:1606.08415), and its gradient. */
#include "vectors.hpp"

constexpr int kAhead = 1024; /* numbers that are fetched early: the loops compute too long for the processor to do it */

/* P(X <= x), and in `density` exp(-x^2 / 2). By formula 7.1.26 of Abramowitz & Stegun (1964) for erf: error 1e-7. */
INLINE Floats normal_probability(Floats x, Floats *density) {
  Floats size = x < 0.0f ? -x : x;
  *density = exp_of_negative(x * x * -0.5f);
  Floats t = 1.0f / (1.0f + 0.231641888f * size); /* 0.3275911 / sqrt(2) */
  Floats sum = t * 0.5307027145f - 0.7265760135f; /* half of the formula's coefficients */
  sum = sum * t + 0.7107068705f;
  sum = sum * t - 0.142248368f;
  sum = sum * t + 0.127414796f;
  Floats tail = sum * t * *density;
  return x < 0.0f ? tail : 1.0f - tail;
}

template <class Format>
static void forward(const void *x, void *result, int64_t n, int n_threads) {
  auto from = (const typename Format::Number *)x;
  auto to = (typename Format::Number *)result;
#pragma omp parallel for num_threads(n_threads)
  for (int64_t i = 0; i < n; i += kLanes) {
    __builtin_prefetch(from + i + kAhead);
    Floats value = Format::load(from + i), density;
    Format::store(to + i, value * normal_probability(value, &density));
  }
}

template <class Format>
static void backward(const void *x, const void *of_result, void *of_x, int64_t n, int n_threads) {
  auto from = (const typename Format::Number *)x, gradient = (const typename Format::Number *)of_result;
  auto to = (typename Format::Number *)of_x;
#pragma omp parallel for num_threads(n_threads)
  for (int64_t i = 0; i < n; i += kLanes) {
    __builtin_prefetch(from + i + kAhead);
    __builtin_prefetch(gradient + i + kAhead);
    Floats value = Format::load(from + i), density;
    Floats slope = normal_probability(value, &density);
    slope += value * density * 0.3989422804f; /* 1 / sqrt(2 pi) */
    Format::store(to + i, Format::load(gradient + i) * slope);
  }
}

/* n numbers, a multiple of 16 */
extern "C" void gelu_forward(const void *x, void *result, int64_t n, int is_bfloat16, int n_threads) {
  (is_bfloat16 ? forward<BFloat16> : forward<Float32>)(x, result, n, n_threads);
}

/* of_result and of_x: gradients of a loss */
extern "C" void gelu_backward(const void *x, const void *of_result, void *of_x, int64_t n, int is_bfloat16,
                              int n_threads) {
  (is_bfloat16 ? backward<BFloat16> : backward<Float32>)(x, of_result, of_x, n, n_threads);
}
