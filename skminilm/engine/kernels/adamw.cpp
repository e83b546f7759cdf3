/* One step of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) in one pass over memory, which bounds its
 * time. */
#include <math.h>

#include "vectors.hpp"

struct Step {
  float scale; /* of the gradient */
  float kept;  /* of the parameters: 1 - learning rate * weight decay */
  float rate;  /* learning rate / (1 - beta_1^t) */
  float beta_1, beta_2;
  float correction; /* 1 / sqrt(1 - beta_2^t) */
  float epsilon;
};

/* Change parameters and moments; `view`, where there is one, receives the parameters in the gradient's
 * format. */
template <class Format>
static void change(float *__restrict__ parameters, float *__restrict__ first, float *__restrict__ second,
                   const typename Format::Number *__restrict__ gradient,
                   typename Format::Number *__restrict__ view, int64_t n, Step step, int n_threads) {
  constexpr int64_t kChunk = 512; /* the next one is fetched while one is computed */
#pragma omp parallel for num_threads(n_threads)
  for (int64_t start = 0; start < n; start += kChunk) {
    int64_t stop = start + kChunk < n ? start + kChunk : n;
    for (int64_t i = start + kChunk; i < stop + kChunk; i += 16) {
      __builtin_prefetch(parameters + i);
      __builtin_prefetch(first + i);
      __builtin_prefetch(second + i);
      __builtin_prefetch(gradient + i);
    }
#pragma omp simd
    for (int64_t i = start; i < stop; i++) {
      float slope = Format::number(gradient[i]) * step.scale;
      first[i] += (slope - first[i]) * (1 - step.beta_1);
      second[i] = second[i] * step.beta_2 + slope * slope * (1 - step.beta_2);
      parameters[i] = parameters[i] * step.kept -
                      step.rate * first[i] / (sqrtf(second[i]) * step.correction + step.epsilon);
      if (view) view[i] = Format::rounded(parameters[i]);
    }
  }
}

extern "C" int adamw_step(float *parameters, float *first, float *second, const void *gradient, void *view,
                          int64_t n, Step step, int is_bfloat16, int n_threads) {
  if (is_bfloat16)
    change<BFloat16>(parameters, first, second, (const uint16_t *)gradient, (uint16_t *)view, n, step,
                     n_threads);
  else
    change<Float32>(parameters, first, second, (const float *)gradient, (float *)view, n, step, n_threads);
  return 0;
}
