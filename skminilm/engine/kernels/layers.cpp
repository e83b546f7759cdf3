/* The parts of a layer that take each token by itself, on AVX2, AVX-512 and AMX: products with weights, GELU,
norms.

From the attention to the end of a layer a block of tokens stays in the cache. All between the products is
float32.
*/
#include "gelu.hpp"

#if defined(__AVX2__)
#include <math.h>

#include "blocks.hpp"
#include "processor.hpp"

struct Norm {
  const float *weight, *bias;
};

/* What follows attention in a layer. */
struct Layer {
  Matrix attention_output, intermediate, output;
  Norm attention_norm, output_norm;
  float epsilon;
};

/* Layer norm of n numbers in place (Ba, Kiros & Hinton, 2016, arXiv:1607.06450). */
INLINE void normalize(float *x, int64_t n, const Norm &norm, float epsilon) {
  Floats sums[kChains] = {}, squares[kChains] = {};
  for (int64_t i = 0; i < n; i += kChains * kLanes) {
    UNROLL
    for (int j = 0; j < kChains; j++) sums[j] += Float32::load(x + i + j * kLanes);
  }
  float mean = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) / n;
  for (int64_t i = 0; i < n; i += kChains * kLanes) {
    UNROLL
    for (int j = 0; j < kChains; j++) {
      Floats value = Float32::load(x + i + j * kLanes) - mean;
      squares[j] += value * value;
    }
  }
  float factor = 1 / sqrtf(sum_of((squares[0] + squares[1]) + (squares[2] + squares[3])) / n + epsilon);
  for (int64_t i = 0; i < n; i += kLanes) {
    Floats value = (Float32::load(x + i) - mean) * factor;
    Float32::store(x + i, value * Float32::load(norm.weight + i) + Float32::load(norm.bias + i));
  }
}

template <class Products, class Format>
static void multiply_block(Team team, const typename Format::Number *x, const Matrix &weight,
                           typename Format::Number *y, int n_rows, Space space) {
  typedef typename Products::Factors Factors;
  Rows rows = space.rows<Products>(weight.depth);
  if (team.member == 0) Products::clear_behind(rows, n_rows, weight.depth);
  for (int row = team.member; row < n_rows; row += team.size)
    Factors::template read<Format>(x + row * weight.depth, weight.depth, rows, row);
  team.wait();
  Products::multiply(team, rows, n_rows, weight,
                     [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                       Format::store(y + row * weight.n + column, value);
                     });
}

template <class Products, class Format>
static void finish_block(Team team, const typename Format::Number *attended,
                         const typename Format::Number *hidden, const Layer &layer,
                         typename Format::Number *result, int n_rows, Space space) {
  typedef typename Products::Factors Factors;
  int64_t size = layer.output.n, wide = layer.output.depth;
  Rows rows = space.rows<Products>(size), wide_rows = space.rows<Products>(wide);
  float *states = space.take<float>(Products::kBlock * size),
        *inner = space.take<float>(Products::kBlock * wide);
  if (team.member == 0) {
    Products::clear_behind(rows, n_rows, size);
    Products::clear_behind(wide_rows, n_rows, wide);
  }
  for (int row = team.member; row < n_rows; row += team.size)
    Factors::template read<Format>(attended + row * size, size, rows, row);
  team.wait();
  Products::multiply(team, rows, n_rows, layer.attention_output,
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
  Products::multiply(team, rows, n_rows, layer.intermediate,
                     [=](int64_t row, int64_t column, Floats value) __attribute__((always_inline)) {
                       value = Factors::gelu(value);
                       if constexpr (Factors::kByRow)
                         Float32::store(inner + row * wide + column, value);
                       else
                         Factors::store(wide_rows, row, wide, column, value);
                     });
  team.wait();
  if constexpr (Factors::kByRow) {
    for (int row = team.member; row < n_rows; row += team.size)
      Factors::template read<Float32>(inner + row * wide, wide, wide_rows, row);
    team.wait();
  }
  Products::multiply(team, wide_rows, n_rows, layer.output,
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

template <class Products>
static int product(const void *x, void *y, const Matrix *weight, int64_t n_tokens, int n_threads) {
  typedef typename Products::Factors::Format Format;
  typedef typename Format::Number Number;
  return for_each_block<Products>(n_tokens, bytes_for_rows<Products>(weight->depth), n_threads,
                                  [=](Team team, int64_t start, int n_rows, Space space) {
                                    multiply_block<Products, Format>(
                                        team, (const Number *)x + start * weight->depth, *weight,
                                        (Number *)y + start * weight->n, n_rows, space);
                                  });
}

template <class Products>
static int after_attention(const void *attended, const void *hidden, void *result, const Layer *layer,
                           int64_t n_tokens, int n_threads) {
  typedef typename Products::Factors::Format Format;
  typedef typename Format::Number Number;
  int64_t size = layer->output.n, wide = layer->output.depth;
  int64_t n_bytes =
      bytes_for_rows<Products>(size) + bytes_for_rows<Products>(wide) + Products::kBlock * (size + wide) * 4;
  return for_each_block<Products>(
      n_tokens, n_bytes, n_threads, [=](Team team, int64_t start, int n_rows, Space space) {
        int64_t place = start * size;
        finish_block<Products, Format>(team, (const Number *)attended + place, (const Number *)hidden + place,
                                       *layer, (Number *)result + place, n_rows, space);
      });
}

int vnni_allowed = 1;

/* What factors are, by the numbers that Python gives them. */
enum Kind { kFloat32, kBFloat16, kInt16, kInt8 };

/* run(Products) for factors of a kind. 1 where the processor does not multiply them. */
template <class Run>
INLINE int with_products(int kind, Run run) {
#if defined(TILES)
  if (has_tiles()) {
    if (kind == kFloat32) return run(OnTiles<SplitFactors<TileByTile>>());
    if (kind == kBFloat16) return run(OnTiles<BFloat16Factors<TileByTile>>());
    if (kind == kInt8) return run(OnTiles<Int8Factors<TileByTile, NativeBFloat16, MultiplyAddFours>>());
  }
#endif
  if (kind == kFloat32) return run(ByVectors<Float32Factors>());
#if defined(__AVX512BF16__)
  if (kind == kBFloat16 && instructions().bfloat16) return run(ByVectors<BFloat16Factors<RowByRow>>());
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  if (instructions().vnni && vnni_allowed) {
#if defined(__AVX512BF16__)
    if (kind == kInt8 && instructions().bfloat16)
      return run(ByVectors<Int8Factors<RowByRow, NativeBFloat16, MultiplyAddFours>>());
#endif
    if (kind == kInt8) return run(ByVectors<Int8Factors<RowByRow, BFloat16, MultiplyAddFours>>());
    if (kind == kInt16) return run(ByVectors<Int16Factors<MultiplyAddPairs>>());
  }
#endif
  if (kind == kInt8) return run(ByVectors<Int8Factors<RowByRow, BFloat16, MultiplyPairsThenAdd>>());
  if (kind == kInt16) return run(ByVectors<Int16Factors<MultiplyThenAdd>>());
  return 1;
}

/* y (n_tokens, weight.n) = x (n_tokens, weight.depth) @ weight' + bias; x and y are float32 for factors in
 * float32 and 16-bit integers, else bfloat16. */
extern "C" int layer_product(const void *x, void *y, const Matrix *weight, int kind, int64_t n_tokens,
                             int n_threads) {
  return with_products(
      kind, [=](auto products) { return product<decltype(products)>(x, y, weight, n_tokens, n_threads); });
}

/* The states behind a layer, of what attention returned in it and of the states before it: all (n_tokens,
 * hidden size), in the precision of layer_product. */
extern "C" int layer_after_attention(const void *attended, const void *hidden, void *result,
                                     const Layer *layer, int kind, int64_t n_tokens, int n_threads) {
  return with_products(kind, [=](auto products) {
    return after_attention<decltype(products)>(attended, hidden, result, layer, n_tokens, n_threads);
  });
}

/* How a matrix lies in memory: in how many parts each of its numbers, and the WeightLayout; and in how many
 * steps products are summed in 16 bits, 1 where they are not. Returns 1 where the processor does not multiply
 * factors of the kind. */
extern "C" int layer_layout(int kind, int *layout) {
  return with_products(kind, [=](auto products) {
    typedef decltype(products) Products;
    layout[0] = Products::Factors::kParts;
    memcpy(layout + 1, &Products::kLayout, sizeof(WeightLayout));
    layout[4] = Products::Factors::kSteps;
    return 0;
  });
}

#else
extern "C" int layer_layout(int, int *) { return 1; }
#endif
