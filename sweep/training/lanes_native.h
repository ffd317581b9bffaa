// What the native sources share: vectors of as many numbers as the processor takes at once.

#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

// Bytes of a vector, and rows of a tile: with two vectors of columns it fills the registers.
#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 12;
#elif defined(__AVX2__)
constexpr int BYTES = 32, ROWS = 6;
#elif defined(__aarch64__)
constexpr int BYTES = 16, ROWS = 12;
#else
constexpr int BYTES = 16, ROWS = 6;
#endif

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
constexpr int64_t LANES = BYTES / sizeof(T);
