/* Blocks of rows, which threads multiply with a weight, and their memory. */
#pragma once

#include <stdlib.h>

#include "products.hpp"

/* Memory for a block, each part at a whole cache line. */
struct Space {
  char *next;
  template <class Number>
  Number *take(int64_t n) {
    Number *part = (Number *)next;
    next += (n * sizeof(Number) + 63) / 64 * 64;
    return part;
  }
  template <class Products>
  Rows rows(int64_t depth) {
    constexpr int n = Products::kBlock;
    return Rows{take<char>(n * depth * Products::Factors::kBytes), take<float>(n), take<float>(n)};
  }
};

template <class Products>
INLINE int64_t bytes_for_rows(int64_t depth) {
  return Products::kBlock * (depth * Products::Factors::kBytes + 2 * 4) + 3 * 64;
}

/* compute(team, first token, number of tokens, space) for all tokens: each thread takes blocks, or where
 * there are fewer blocks than threads, each block a team. Returns 1 where the memory is too small. */
template <class Products, class Compute>
INLINE int for_each_block(int64_t n_tokens, int64_t n_bytes, int n_threads, Compute compute) {
  /* Few tokens in large blocks: for each the weights have to come from memory. */
  constexpr int kRows = Products::kRows;
  int64_t most = n_tokens > Products::kBlock * n_threads ? Products::kUsualBlock : Products::kBlock;
  int64_t n_blocks = (n_tokens + most - 1) / most;
  if (n_blocks > n_threads) n_blocks = (n_blocks + n_threads - 1) / n_threads * n_threads;
  bool in_teams = n_blocks < n_threads;
  n_bytes = (n_bytes + 4095) / 4096 * 4096;
  char *bytes = (char *)aligned_alloc(4096, (in_teams ? n_blocks : n_threads) * n_bytes);
  if (n_tokens == 0 || !bytes) {
    free(bytes);
    return n_tokens > 0;
  }
  /* Whole tiles, as many for each block as for the others. */
  int64_t size = (n_tokens + n_blocks * kRows - 1) / (n_blocks * kRows) * kRows;
  auto run = [&](int64_t block, Team team, int place) {
    int64_t start = block * size, n_rows = n_tokens - start < size ? n_tokens - start : size;
    compute(team, start, n_rows > 0 ? (int)n_rows : 0, Space{bytes + place * n_bytes});
  };
  if (in_teams) {
#pragma omp parallel num_threads(n_threads)
    {
      int thread = omp_get_thread_num(), n = omp_get_num_threads();
      int n_teams = n_blocks < n ? n_blocks : n;
      for (int64_t first = 0; first < n_blocks;
           first += n_teams) { /* one round, but where the system gives fewer threads */
        int team = (int64_t)thread * n_teams / n;
        int start = (team * n + n_teams - 1) / n_teams, stop = ((team + 1) * n + n_teams - 1) / n_teams;
        run(first + team, Team{thread - start, stop - start, n}, first + team);
      }
    }
  } else {
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
    for (int64_t block = 0; block < n_blocks; block++) run(block, Team{0, 1, 1}, omp_get_thread_num());
  }
  free(bytes);
  return 0;
}
