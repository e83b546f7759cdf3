/* The tiles of AMX: eight, each of 16 rows of 64 bytes. */
#pragma once

#include "processor.hpp"

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int kTileRows = 16, kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

struct __attribute__((packed)) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/* GCC does not know that loading tiles, or their configuration, reads memory: what is before is written by
 * then. */
INLINE void write_memory() { asm volatile("" ::: "memory"); }
#endif

/* 0 where the tiles are left alone. */
extern "C" int tiles_allowed;

/* Tell whether the processor has tiles for products, and the system gives them. */
static bool has_tiles() {
#if defined(TILES)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  constexpr unsigned kAll = bit_AMX_TILE | bit_AMX_BF16 | bit_AMX_INT8;
  unsigned a, b, c, d;
  static const bool has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll &&
                          instructions().bfloat16 && /* for what is between the products */
                          syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return has && tiles_allowed;
#else
  return false;
#endif
}
