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

// Those who hold a program's tensors: PyTorch, or lanes_tensors.cpp, with functions of the same
// forms whose names have `sweep` for `torch`.
extern "C" {
AOTI_TORCH_EXPORT decltype(aoti_torch__reinterpret_tensor) aoti_sweep__reinterpret_tensor;
AOTI_TORCH_EXPORT decltype(aoti_torch_clone) aoti_sweep_clone;
AOTI_TORCH_EXPORT decltype(aoti_torch_create_tensor_from_blob) aoti_sweep_create_tensor_from_blob;
AOTI_TORCH_EXPORT decltype(aoti_torch_create_tensor_from_blob_v2)
    aoti_sweep_create_tensor_from_blob_v2;
AOTI_TORCH_EXPORT decltype(aoti_torch_delete_tensor_object) aoti_sweep_delete_tensor_object;
AOTI_TORCH_EXPORT decltype(aoti_torch_empty_strided) aoti_sweep_empty_strided;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_data_ptr) aoti_sweep_get_data_ptr;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_device_type) aoti_sweep_get_device_type;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_dim) aoti_sweep_get_dim;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_dtype) aoti_sweep_get_dtype;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_numel) aoti_sweep_get_numel;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_sizes) aoti_sweep_get_sizes;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_storage_offset) aoti_sweep_get_storage_offset;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_storage_size) aoti_sweep_get_storage_size;
AOTI_TORCH_EXPORT decltype(aoti_torch_get_strides) aoti_sweep_get_strides;
AOTI_TORCH_EXPORT decltype(aoti_torch_new_tensor_handle) aoti_sweep_new_tensor_handle;
}

#define HOLDER(Name, word)                                                 \
  struct Name {                                                            \
    static constexpr auto dim = aoti_##word##_get_dim;                     \
    static constexpr auto sizes = aoti_##word##_get_sizes;                 \
    static constexpr auto strides = aoti_##word##_get_strides;             \
    static constexpr auto dtype = aoti_##word##_get_dtype;                 \
    static constexpr auto data = aoti_##word##_get_data_ptr;               \
    static constexpr auto empty = aoti_##word##_empty_strided;             \
    static constexpr auto reinterpret = aoti_##word##__reinterpret_tensor; \
    static constexpr auto again = aoti_##word##_new_tensor_handle;         \
    static constexpr auto drop = aoti_##word##_delete_tensor_object;       \
  };
HOLDER(Torch, torch)
HOLDER(Sweep, sweep)
#undef HOLDER

// An operator, a template of who holds its tensors, under the names that programs call it by.
#define OPERATOR(name, parameters, ...)                                          \
  extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_cpu_##name parameters { \
    return name<Torch>(__VA_ARGS__);                                             \
  }                                                                              \
  extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_sweep_cpu_##name parameters { \
    return name<Sweep>(__VA_ARGS__);                                             \
  }

// What is known of a tensor.
struct Tensor {
  int64_t dim, *sizes, *strides;
  int32_t dtype;
  void* data;
  template <class Holder>
  bool read(AtenTensorHandle handle) {
    return !Holder::dim(handle, &dim) && !Holder::sizes(handle, &sizes) &&
           !Holder::strides(handle, &strides) && !Holder::dtype(handle, &dtype) &&
           !Holder::data(handle, &data);
  }
};

// A new tensor, a lane's numbers side by side in their order, and where they go.
template <class Holder>
bool make(int64_t dim, const int64_t* sizes, int32_t dtype, AtenTensorHandle* made, void** data) {
  int64_t strides[64];
  if (dim > 64) return false;
  for (int64_t axis = dim - 1, apart = 1; axis >= 0; apart *= sizes[axis--]) strides[axis] = apart;
  return !Holder::empty(dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, made) &&
         !Holder::data(*made, data);
}
