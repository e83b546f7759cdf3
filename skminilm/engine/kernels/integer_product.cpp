/* The product of two matrices in float32 by integers in 16 bits, for training: weights change in each step,
and for a gradient both factors are new. Each row of a factor is rounded on a scale of its own.
*/
#include "vectors.hpp"

#if defined(__AVX2__)
#include <math.h>

#include "blocks.hpp"
#include "processor.hpp"

/* A matrix with its numbers at any distances. */
struct Strided {
  const float *numbers;
  int64_t row_step, column_step;
  __attribute__((always_inline)) const float *place(int64_t row, int64_t column) const {
    return numbers + row * row_step + column * column_step;
  }
};

/* Products take rows that are a multiple of so many long. */
constexpr int kDepthStep = kChains * kLanes;
/* Columns between those that are copied and those that come into the cache. */
constexpr int kAhead = 4 * kLanes;

/* Copy n_rows rows of `depth` numbers to rows of `padded` numbers, which are 0 at the end. */
static void copy_rows(const Strided &x, int64_t first, int n_rows, int64_t depth, int64_t padded,
                      float *rows) {
  int64_t in_blocks = x.row_step == 1 && n_rows >= kLanes ? depth / kLanes * kLanes : 0;
  for (int64_t column = 0; column < in_blocks; column += kLanes) {
    /* Each column is on another page of memory: the processor does not look ahead. */
    for (int i = 0; i < kLanes; i++)
      for (int row = 0; row < n_rows; row += kLanes)
        __builtin_prefetch(x.place(first + row, column + kAhead + i));
    for (int start = 0; start < n_rows; start += kLanes) {
      /* Of the last rows some twice, but none that are not there. */
      int row = start < n_rows - kLanes ? start : n_rows - kLanes;
      Floats block[kLanes];
      for (int i = 0; i < kLanes; i++) block[i] = Float32::load(x.place(first + row, column + i));
      transpose(block);
      for (int i = 0; i < kLanes; i++) Float32::store(rows + (row + i) * padded + column, block[i]);
    }
  }
  for (int row = 0; row < n_rows; row++) {
    for (int64_t column = in_blocks; column < depth; column++)
      rows[row * padded + column] = *x.place(first + row, column);
    for (int64_t column = depth; column < padded; column++) rows[row * padded + column] = 0;
  }
}

/* Round n_rows rows; `copied` has room for them. */
template <class Factors>
static void round_rows(const Strided &x, int64_t first, int n_rows, int64_t depth, int64_t padded,
                       float *copied, const Rows &to) {
  bool as_they_lie = x.column_step == 1 && depth == padded;
  if (!as_they_lie) copy_rows(x, first, n_rows, depth, padded, copied);
  for (int row = 0; row < n_rows; row++) {
    const float *numbers = as_they_lie ? x.place(first + row, 0) : copied + row * padded;
    Factors::template read<Float32>(numbers, padded, to, row);
  }
}

/* Round kLanes of the weight's rows, and lay their numbers out as the products take them: by strips, in each
 * pairs of neighbours as (padded / 2, rows of the strip). */
template <class Products>
static void lay_out_rows(const Strided &weight, int64_t first, int64_t depth, int64_t padded, float *numbers,
                         float *scales, Space space) {
  constexpr int kStrip = Products::kStrip;
  constexpr WeightLayout kLayout = Products::kLayout;
  static_assert(kLayout.n_tiles == 1 && kLayout.groups == 1 && kLayout.columns == kStrip);
  float *copied = space.take<float>(kLanes * padded);
  int64_t n_pairs = padded / 2, row = first % kStrip;
  float *pairs = space.take<float>(kLanes * n_pairs);
  Rows rows{(char *)pairs, scales + first, nullptr};
  round_rows<typename Products::Factors>(weight, first, kLanes, depth, padded, copied, rows);
  numbers += (first - row) * n_pairs + row;
  for (int64_t pair = 0; pair < n_pairs; pair += kLanes) {
    Floats block[kLanes];
    for (int i = 0; i < kLanes; i++) block[i] = Float32::load(pairs + i * n_pairs + pair);
    transpose(block);
    for (int i = 0; i < kLanes; i++) Float32::store(numbers + (pair + i) * kStrip, block[i]);
  }
}

template <class Products>
static int multiply(const Strided &x, const Strided &weight, const float *bias, float *y, int64_t n_rows,
                    int64_t n, int64_t depth, int n_threads) {
  typedef typename Products::Factors Factors;
  int64_t padded = (depth + kDepthStep - 1) / kDepthStep * kDepthStep;
  int64_t bytes_a_thread = (padded * kLanes * (4 + 2) + 4095) / 4096 * 4096;
  int64_t weight_bytes = (n * (padded / 2 + 2) * 4 + 4095) / 4096 * 4096;
  char *bytes = (char *)aligned_alloc(4096, weight_bytes + n_threads * bytes_a_thread);
  if (!bytes) return 1;
  float *numbers = (float *)bytes, *scales = numbers + n * padded / 2, *zeros = scales + n;
  memset(zeros, 0, n * sizeof(float));
#pragma omp parallel for num_threads(n_threads)
  for (int64_t first = 0; first < n; first += kLanes) {
    Space space{bytes + weight_bytes + omp_get_thread_num() * bytes_a_thread};
    lay_out_rows<Products>(weight, first, depth, padded, numbers, scales, space);
  }
  Matrix matrix{bytes, scales, nullptr, bias ? bias : zeros, n, padded};
  int failed = for_each_block<Products>(
      n_rows, bytes_for_rows<Products>(padded) + Products::kBlock * padded * 4, n_threads,
      [=](Team team, int64_t start, int n_rows, Space space) {
        Rows rows = space.rows<Products>(padded);
        float *copied = space.take<float>(Products::kBlock * padded);
        if (team.member == 0) Products::clear_behind(rows, n_rows, padded);
        /* The member's share, whole vectors of rows. */
        int n_parts = (n_rows + kLanes - 1) / kLanes, stop = n_parts * (team.member + 1) / team.size * kLanes;
        int first = n_parts * team.member / team.size * kLanes, n = (stop < n_rows ? stop : n_rows) - first;
        Rows share{rows.numbers + first * padded * Factors::kBytes, rows.scales + first, nullptr};
        round_rows<Factors>(x, start + first, n, depth, padded, copied + first * padded, share);
        team.wait();
        Products::multiply(team, rows, n_rows, matrix,
                           [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                             Float32::store(y + (start + row) * matrix.n + column, value);
                           });
      });
  free(bytes);
  return failed;
}

/* y (n_rows, n) = x (n_rows, depth) @ weight (n, depth)' + bias; the numbers of x and of the weight lie at any
 * distances, n is a multiple of 64, a bias need not be. Returns 1 where the memory is too small. */
extern "C" int integer_product(const float *x, const float *weight, const float *bias, float *y,
                               int64_t x_row_step, int64_t x_column_step, int64_t weight_row_step,
                               int64_t weight_column_step, int64_t n_rows, int64_t n, int64_t depth,
                               int n_threads) {
  Strided rows{x, x_row_step, x_column_step}, columns{weight, weight_row_step, weight_column_step};
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  if (instructions().vnni && vnni_allowed)
    return multiply<ByVectors<Int16Factors<MultiplyAddPairs>>>(rows, columns, bias, y, n_rows, n, depth,
                                                               n_threads);
#endif
  return multiply<ByVectors<Int16Factors<MultiplyThenAdd>>>(rows, columns, bias, y, n_rows, n, depth, n_threads);
}
#endif
