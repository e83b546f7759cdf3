/* GELU of many numbers, and its gradient. */
#include "gelu.hpp"

constexpr int kAhead =
    1024; /* numbers that are fetched early: the loops compute too long for the processor to do it */

template <class Format>
static void forward(const void *x, void *result, int64_t n, int n_threads) {
  auto from = (const typename Format::Number *)x;
  auto to = (typename Format::Number *)result;
#pragma omp parallel for num_threads(n_threads)
  for (int64_t i = 0; i < n; i += kLanes) {
    __builtin_prefetch(from + i + kAhead);
    Format::store(to + i, gelu_of(Format::load(from + i)));
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
    value = value > 16.0f ? Floats{} + 16.0f : value < -16.0f ? Floats{} - 16.0f : value; /* never 0 there */
    slope += value * density * 0.3989422804f;                                             /* 1 / sqrt(2 pi) */
    Format::store(to + i, Format::load(gradient + i) * slope);
  }
}

/* n numbers, a multiple of 16 */
extern "C" int gelu_forward(const void *x, void *result, int64_t n, int is_bfloat16, int n_threads) {
  (is_bfloat16 ? forward<BFloat16> : forward<Float32>)(x, result, n, n_threads);
  return 0;
}

/* of_result and of_x: gradients of a loss */
extern "C" int gelu_backward(const void *x, const void *of_result, void *of_x, int64_t n, int is_bfloat16,
                             int n_threads) {
  (is_bfloat16 ? backward<BFloat16> : backward<Float32>)(x, of_result, of_x, n, n_threads);
  return 0;
}
