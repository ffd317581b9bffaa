// Tensors of compiled programs: numbers in memory, with their sizes and strides.
//
// A program of small tensors makes a hundred of them a step, and PyTorch's are made to be shared
// with Python, differentiated, and held by any device: a tenth of a step went into making them. A
// program that calls nothing else of PyTorch is bound to these functions, of the same forms
// (`compile_program.bound_to_own`). A tensor stays on the thread that made it; one of constants, or
// taken over from PyTorch, has numbers that are somebody else's.

#include <cstdlib>
#include <cstring>

#include "lanes_native.h"

namespace {

constexpr int64_t MOST_AXES = 16, ALIGNMENT = 64, SHELVES = 251;
// Bytes of freed numbers that a thread keeps for its next tensors of the same sizes: a block's.
constexpr int64_t MOST_KEPT = 16 << 20;

// Before the numbers themselves, ALIGNMENT bytes later.
struct Numbers {
  int64_t uses, bytes;
  Numbers* next;
};

struct Held {
  void* data;
  Numbers* numbers;  // null where they are somebody else's
  int64_t dim;
  int32_t dtype;
  int64_t sizes[MOST_AXES], strides[MOST_AXES];
  Held* next;
};

// What a thread has freed, to be used again.
class Freed {
 public:
  ~Freed() {
    drop_numbers();
    while (Held* one = tensors) {
      tensors = one->next;
      std::free(one);
    }
  }

  Numbers* take(int64_t bytes) {
    Shelf& shelf = shelf_of(bytes);
    Numbers* numbers = shelf.first;
    if (numbers && shelf.bytes == bytes) {
      shelf.first = numbers->next;
      kept -= bytes;
    } else {
      numbers = (Numbers*)std::aligned_alloc(ALIGNMENT, ALIGNMENT + bytes);
      if (!numbers) return nullptr;
      numbers->bytes = bytes;
    }
    numbers->uses = 1;
    return numbers;
  }

  void give(Numbers* numbers) {
    if (numbers->bytes > MOST_KEPT) return std::free(numbers);
    if (kept + numbers->bytes > MOST_KEPT) drop_numbers();
    Shelf& shelf = shelf_of(numbers->bytes);
    if (shelf.bytes != numbers->bytes) empty(shelf);
    shelf.bytes = numbers->bytes;
    numbers->next = shelf.first;
    shelf.first = numbers;
    kept += numbers->bytes;
  }

  Held* take() {
    Held* one = tensors;
    if (!one) return (Held*)std::malloc(sizeof(Held));
    tensors = one->next;
    return one;
  }

  void give(Held* one) {
    one->next = tensors;
    tensors = one;
  }

 private:
  struct Shelf {
    int64_t bytes;
    Numbers* first;
  };
  Shelf shelves[SHELVES] = {};
  int64_t kept = 0;
  Held* tensors = nullptr;

  Shelf& shelf_of(int64_t bytes) {
    return shelves[bytes / ALIGNMENT % SHELVES];
  }

  void empty(Shelf& shelf) {
    while (Numbers* numbers = shelf.first) {
      shelf.first = numbers->next;
      kept -= numbers->bytes;
      std::free(numbers);
    }
  }

  void drop_numbers() {
    for (Shelf& shelf : shelves) empty(shelf);
  }
};

thread_local Freed freed;

Held* held(AtenTensorHandle handle) {
  return (Held*)handle;
}

int64_t element_size(int32_t dtype) {
  return aoti_torch_dtype_element_size(dtype);
}

// Bytes from the first number to beyond the last one.
int64_t span(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  int64_t last = 0;
  for (int64_t i = 0; i < dim; i++) {
    if (!sizes[i]) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  return (last + 1) * element_size(dtype);
}

AOTITorchError hold(void* data, Numbers* numbers, int64_t dim, const int64_t* sizes,
                    const int64_t* strides, int32_t dtype, AtenTensorHandle* made) {
  Held* one = dim <= MOST_AXES ? freed.take() : nullptr;
  if (!one) return AOTI_TORCH_FAILURE;
  one->data = data, one->numbers = numbers, one->dim = dim, one->dtype = dtype;
  for (int64_t i = 0; i < dim; i++) one->sizes[i] = sizes[i], one->strides[i] = strides[i];
  *made = (AtenTensorHandle)one;
  return AOTI_TORCH_SUCCESS;
}

// A tensor of the same numbers.
AOTITorchError share(Held* one, int64_t dim, const int64_t* sizes, const int64_t* strides,
                     int64_t offset, AtenTensorHandle* made) {
  void* data = (char*)one->data + offset * element_size(one->dtype);
  if (hold(data, one->numbers, dim, sizes, strides, one->dtype, made)) return AOTI_TORCH_FAILURE;
  if (one->numbers) one->numbers->uses++;
  return AOTI_TORCH_SUCCESS;
}

template <class T>
AOTITorchError set(T* to, T value) {
  *to = value;
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

extern "C" {

AOTITorchError aoti_sweep_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t, int32_t, AtenTensorHandle* made) {
  const int64_t bytes = span(dim, sizes, strides, dtype);
  Numbers* numbers = freed.take((bytes / ALIGNMENT + 1) * ALIGNMENT);
  if (!numbers) return AOTI_TORCH_FAILURE;
  void* data = (char*)numbers + ALIGNMENT;
  if (!hold(data, numbers, dim, sizes, strides, dtype, made)) return AOTI_TORCH_SUCCESS;
  freed.give(numbers);
  return AOTI_TORCH_FAILURE;
}

AOTITorchError aoti_sweep_delete_tensor_object(AtenTensorHandle handle) {
  Held* one = held(handle);
  if (one->numbers && !--one->numbers->uses) freed.give(one->numbers);
  freed.give(one);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_sweep_new_tensor_handle(AtenTensorHandle of, AtenTensorHandle* made) {
  Held* one = held(of);
  return share(one, one->dim, one->sizes, one->strides, 0, made);
}

// `offset`: from the tensor's own first number.
AOTITorchError aoti_sweep__reinterpret_tensor(AtenTensorHandle of, int64_t dim,
                                              const int64_t* sizes, const int64_t* strides,
                                              int64_t offset, AtenTensorHandle* made) {
  return share(held(of), dim, sizes, strides, offset, made);
}

AOTITorchError aoti_sweep_create_tensor_from_blob(void* data, int64_t dim, const int64_t* sizes,
                                                  const int64_t* strides, int64_t offset,
                                                  int32_t dtype, int32_t, int32_t,
                                                  AtenTensorHandle* made) {
  void* first = (char*)data + offset * element_size(dtype);
  return hold(first, nullptr, dim, sizes, strides, dtype, made);
}

AOTITorchError aoti_sweep_create_tensor_from_blob_v2(void* data, int64_t dim, const int64_t* sizes,
                                                     const int64_t* strides, int64_t offset,
                                                     int32_t dtype, int32_t device, int32_t index,
                                                     AtenTensorHandle* made, int32_t,
                                                     const uint8_t*, int64_t) {
  return aoti_sweep_create_tensor_from_blob(data, dim, sizes, strides, offset, dtype, device, index,
                                            made);
}

AOTITorchError aoti_sweep_clone(AtenTensorHandle of, AtenTensorHandle* made) {
  const Held* one = held(of);
  if (aoti_sweep_empty_strided(one->dim, one->sizes, one->strides, one->dtype, 0, 0, made))
    return AOTI_TORCH_FAILURE;
  std::memcpy(held(*made)->data, one->data, span(one->dim, one->sizes, one->strides, one->dtype));
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_sweep_get_data_ptr(AtenTensorHandle of, void** data) {
  return set(data, held(of)->data);
}

AOTITorchError aoti_sweep_get_sizes(AtenTensorHandle of, int64_t** sizes) {
  return set<int64_t*>(sizes, held(of)->sizes);
}

AOTITorchError aoti_sweep_get_strides(AtenTensorHandle of, int64_t** strides) {
  return set<int64_t*>(strides, held(of)->strides);
}

AOTITorchError aoti_sweep_get_dtype(AtenTensorHandle of, int32_t* dtype) {
  return set(dtype, held(of)->dtype);
}

AOTITorchError aoti_sweep_get_device_type(AtenTensorHandle, int32_t* device) {
  return set(device, aoti_torch_device_type_cpu());
}

AOTITorchError aoti_sweep_get_dim(AtenTensorHandle of, int64_t* dim) {
  return set(dim, held(of)->dim);
}

AOTITorchError aoti_sweep_get_numel(AtenTensorHandle of, int64_t* numel) {
  *numel = 1;
  for (int64_t i = 0; i < held(of)->dim; i++) *numel *= held(of)->sizes[i];
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_sweep_get_storage_offset(AtenTensorHandle, int64_t* offset) {
  return set<int64_t>(offset, 0);
}

AOTITorchError aoti_sweep_get_storage_size(AtenTensorHandle of, int64_t* bytes) {
  const Held* one = held(of);
  return set(bytes, span(one->dim, one->sizes, one->strides, one->dtype));
}

}  // extern "C"
