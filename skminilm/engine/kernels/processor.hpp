/* What processors of one library can do or not. */
#pragma once

#include "vectors.hpp"

#if defined(__x86_64__)
#include <cpuid.h>

struct Instructions {
  bool bfloat16, vnni;
};

/* 0 where VNNI is left alone. */
extern "C" int vnni_allowed;

/* Asking takes longer than a small product on some machines. */
static const Instructions &instructions() {
  static const Instructions has = [] {
    unsigned last, more = 0, b, c, d, unused;
    if (!__get_cpuid_count(7, 0, &last, &b, &c, &d)) return Instructions{};
    if (last >= 1) __get_cpuid_count(7, 1, &more, &b, &unused, &d);
    bool vnni = kLanes == 16 ? c & 1 << 11 : more & 1 << 4; /* AVX-512 VNNI or AVX-VNNI */
    return Instructions{(more & 1 << 5) != 0, vnni};
  }();
  return has;
}
#endif
