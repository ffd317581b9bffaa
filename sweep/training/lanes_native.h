// What the native sources share: vectors of as many numbers as the processor takes at once, and
// tensors.

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

// A tensor as PyTorch's C interface shows it; `read` is whether it does.
struct Tensor {
  int64_t *sizes, *strides;
  int32_t dtype;
  void* data;
  bool read(AtenTensorHandle handle) {
    return !aoti_torch_get_sizes(handle, &sizes) && !aoti_torch_get_strides(handle, &strides) &&
           !aoti_torch_get_dtype(handle, &dtype) && !aoti_torch_get_data_ptr(handle, &data);
  }
};
