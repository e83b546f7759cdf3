/* What attention shares: its heads, one after the other on each thread, and their memory. */
#pragma once

#include <omp.h>
#include <stdlib.h>

#include "vectors.hpp"

#if defined(__AVX512F__)
constexpr int kRowNumbers = 32;
typedef uint16_t Row __attribute__((vector_size(2 * kRowNumbers))); /* in bfloat16 */

INLINE Row load_row(const uint16_t *place) {
  typedef Row Unaligned __attribute__((aligned(2)));
  return *(const Unaligned *)place;
}

/* Pairs of what lies side by side in two rows, those of the first half and of the second */
INLINE void interleave(Row even, Row odd, Row *first, Row *second) {
  Row first_half, second_half;
  for (int i = 0; i < kRowNumbers; i++) {
    first_half[i] = i / 2 + i % 2 * kRowNumbers;
    second_half[i] = first_half[i] + kRowNumbers / 2;
  }
  *first = __builtin_shuffle(even, odd, first_half);
  *second = __builtin_shuffle(even, odd, second_half);
}
#endif

/* Takes parts of a buffer, each at a whole vector. */
struct Scratch {
  float *next;
  template <class Number = float>
  __attribute__((always_inline)) Number *take(int64_t n) {
    float *part = next;
    constexpr int kBytes = kLanes * sizeof(float);
    next += (n * (int64_t)sizeof(Number) + kBytes - 1) / kBytes * kLanes;
    return (Number *)part;
  }
};

/* Tokens of the longest sequence. */
INLINE int longest_of(const int32_t *offsets, int n_sequences) {
  int longest = 0;
  for (int i = 0; i < n_sequences; i++) {
    int length = offsets[i + 1] - offsets[i];
    if (length > longest) longest = length;
  }
  return longest;
}

/* Returns 1 where the memory is too small. */
template <class Compute>
INLINE int for_each_head(int n_sequences, int n_heads, int n_threads, int64_t n_floats, Compute compute) {
  n_floats = (n_floats + 15) / 16 * 16;
  float *floats = (float *)aligned_alloc(64, n_threads * n_floats * sizeof(float));
  if (!floats) return 1;
  /* Heads of one sequence lie side by side: one thread takes several, but every thread gets some. */
  int chunk = n_sequences * n_heads / (8 * n_threads);
  chunk = chunk > n_heads ? n_heads : chunk < 1 ? 1 : chunk;
#pragma omp parallel for num_threads(n_threads) schedule(dynamic, chunk)
  for (int i = 0; i < n_sequences * n_heads; i++)
    compute(i / n_heads, i % n_heads, Scratch{floats + omp_get_thread_num() * n_floats});
  free(floats);
  return 0;
}

template <class Number>
INLINE void clear(Number *rows, int64_t start, int64_t stop, int64_t width) {
  if (stop > start) memset(rows + start * width, 0, (stop - start) * width * sizeof(Number));
}

/* attend(qkv, attended, length, hidden, size, scratch) in each head of each sequence; 0 behind them. Returns
 * 1 where the memory is too small. */
template <class Number, class Attend>
INLINE int attend_in_each_head(const void *qkv, void *attended, const int32_t *offsets, int64_t n_slots,
                               int n_sequences, int n_heads, int size, int n_threads, int64_t n_floats,
                               Attend attend) {
  int64_t hidden = (int64_t)n_heads * size;
  clear((Number *)attended, offsets[n_sequences], n_slots, hidden);
  return for_each_head(n_sequences, n_heads, n_threads, n_floats,
                       [=](int sequence, int head, Scratch scratch) {
                         int64_t start = offsets[sequence];
                         attend((const Number *)qkv + start * 3 * hidden + head * size,
                                (Number *)attended + start * hidden + head * size,
                                offsets[sequence + 1] - start, hidden, size, scratch);
                       });
}

/* The same for attend_backward(qkv, of_attended, of_qkv, length, hidden, size, scratch). */
template <class Number, class AttendBackward>
INLINE int attend_backward_in_each_head(const void *qkv, const void *of_attended, void *of_qkv,
                                        const int32_t *offsets, int64_t n_slots, int n_sequences, int n_heads,
                                        int size, int n_threads, int64_t n_floats,
                                        AttendBackward attend_backward) {
  int64_t hidden = (int64_t)n_heads * size;
  clear((Number *)of_qkv, offsets[n_sequences], n_slots, 3 * hidden);
  return for_each_head(n_sequences, n_heads, n_threads, n_floats,
                       [=](int sequence, int head, Scratch scratch) {
                         int64_t start = offsets[sequence];
                         attend_backward((const Number *)qkv + start * 3 * hidden + head * size,
                                         (const Number *)of_attended + start * hidden + head * size,
                                         (Number *)of_qkv + start * 3 * hidden + head * size,
                                         offsets[sequence + 1] - start, hidden, size, scratch);
                       });
}
