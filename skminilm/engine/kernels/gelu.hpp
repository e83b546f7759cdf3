/* GELU(x) = x P(X <= x) for a standard normal X (Hendrycks & Gimpel, 2016, arXiv:1606.08415). */
#pragma once

#include "vectors.hpp"

/* P(X <= x), and in `density` exp(-x^2 / 2). By formula 7.1.26 of Abramowitz & Stegun (1964) for erf: error
 * 1e-7. */
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

INLINE Floats gelu_of(Floats x) {
  Floats density;
  return x * normal_probability(x, &density);
}
