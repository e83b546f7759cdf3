/* Rows of a matrix in 4 bits, as floats. */
#include "vectors.hpp"

constexpr int kNumbers = 32; /* of a block, whose scale comes first */
constexpr int kBytes = 2 + kNumbers / 2;

/* A number of 16 bits (IEEE 754) as a float. */
INLINE float widened(uint16_t half) {
  constexpr float kRebias = 5.192296858534828e33f; /* 2^112, by which the exponents differ */
  bool is_finite = (half & 0x7c00) != 0x7c00;
  uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float size = is_finite ? as<float>(bits) * kRebias : as<float>(bits | 0x7f800000);
  return half & 0x8000 ? -size : size;
}

/* result (n_rows, 32 * n_blocks) = rows `ids` of a table (any, n_blocks, 18 bytes): number j of a block is
the low half of byte j less 8, number j + 16 the high half less 8, times the scale. */
extern "C" int gather_q4(const uint8_t *table, const int64_t *ids, float *result, int64_t n_rows,
                         int64_t n_blocks, int n_threads) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1)));
#pragma omp parallel for num_threads(n_threads)
  for (int64_t row = 0; row < n_rows; row++) {
    const uint8_t *block = table + ids[row] * n_blocks * kBytes;
    float *to = result + row * n_blocks * kNumbers;
    for (int64_t i = 0; i < n_blocks; i++, block += kBytes, to += kNumbers) {
      uint16_t half;
      memcpy(&half, block, sizeof half);
      float scale = widened(half);
      for (int j = 0; j < kNumbers / 2; j += kLanes) {
        Ints pairs = __builtin_convertvector(*(const Bytes *)(block + 2 + j), Ints);
        Float32::store(to + j, __builtin_convertvector((pairs & 15) - 8, Floats) * scale);
        Float32::store(to + j + kNumbers / 2, __builtin_convertvector((pairs >> 4) - 8, Floats) * scale);
      }
    }
  }
  return 0;
}
