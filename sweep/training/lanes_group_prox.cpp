// The operator sweep::group_prox of problem/group_prox.py, which says what is computed and how, by
// loops that end where a row is done. Computes on the calling thread.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lanes_native.h"

namespace {

constexpr int MOST_STEPS = 64, ENOUGH = 8;

template <class T>
using V = typename Vector<T>::type;

template <class T>
T sum(V<T> v) {
  T all = 0;
  for (int i = 0; i < LANES<T>; i++) all += v[i];
  return all;
}

// Numbers that are `apart` in memory.
template <class T>
struct Row {
  const T* first;
  int64_t apart;
  T operator[](int64_t i) const {
    return first[i * apart];
  }
};

// rho of a row of `vectors` vectors: v, whose largest entry is 1, and c.
template <class T>
T root(const V<T>* v, const V<T>* c, int64_t vectors, T rho) {
  using Limits = std::numeric_limits<T>;
  for (int step = 0; step < MOST_STEPS; step++) {
    V<T> squares{}, cubes{};
    for (int64_t i = 0; i < vectors; i++) {
      const V<T> part = 1 / (c[i] + rho), share = v[i] * part;
      squares += share * share;
      cubes += share * share * part;
    }
    const T phi = sum<T>(squares);
    const T rise = phi * (std::sqrt(phi) - 1) / (sum<T>(cubes) + Limits::min());
    if (rise > 0) rho += rise;
    if (!(rise > ENOUGH * Limits::epsilon() * rho)) break;
  }
  return rho;
}

template <class T>
void prox(Row<T> w, Row<T> step, T weight, T* u, int64_t size, std::vector<V<T>>& room) {
  using Limits = std::numeric_limits<T>;
  T largest = 0;
  bool is_number = true;
  for (int64_t i = 0; i < size; i++) {
    const T entry = std::abs(w[i]);
    largest = std::max(largest, entry);
    is_number &= entry <= Limits::max() && step[i] == step[i];
  }
  const T unit = largest > 0 ? largest : 1, strength = weight / unit;
  if (!is_number || strength != strength) {
    std::fill(u, u + size, Limits::quiet_NaN());
    return;
  }
  const int64_t vectors = (size + LANES<T> - 1) / LANES<T>;
  room.assign(2 * vectors, V<T>{} + 1);
  T *v = (T*)room.data(), *c = (T*)(room.data() + vectors);
  T inner = 0, outer = 0, square = 0;
  for (int64_t i = 0; i < size; i++) {
    v[i] = w[i] / unit;
    c[i] = std::max(step[i] * strength, Limits::min());
    inner = std::max(inner, std::abs(v[i]) - c[i]);
    outer = std::max(outer, c[i]);
    square += v[i] * v[i];
  }
  std::fill(v + size, v + vectors * LANES<T>, T(0));
  const T start = std::max(inner, std::sqrt(square) - outer);
  const T rho = root<T>((V<T>*)v, (V<T>*)c, vectors, start);
  for (int64_t i = 0; i < size; i++) u[i] = w[i] * (rho / (rho + c[i]));
}

template <class T>
void prox_all(const Tensor& w, const Tensor& step, const Tensor& weight, T* u) {
  thread_local static std::vector<V<T>> room;
  const int64_t size = w.sizes[1];
  for (int64_t n = 0; n < w.sizes[0]; n++)
    prox<T>({(const T*)w.data + n * w.strides[0], w.strides[1]},
            {(const T*)step.data + n * step.strides[0], step.strides[1]},
            ((const T*)weight.data)[n * weight.strides[0]], u + n * size, size, room);
}

template <class Holder>
AOTITorchError group_prox(AtenTensorHandle w_handle, AtenTensorHandle step_handle,
                          AtenTensorHandle weight_handle, AtenTensorHandle* made) {
  Tensor w, step, weight;
  void* u;
  if (!w.read<Holder>(w_handle) || !step.read<Holder>(step_handle) ||
      !weight.read<Holder>(weight_handle) || step.dtype != w.dtype || weight.dtype != w.dtype)
    return AOTI_TORCH_FAILURE;
  if (!make<Holder>(2, w.sizes, w.dtype, made, &u)) return AOTI_TORCH_FAILURE;
  if (w.dtype == aoti_torch_dtype_float32())
    prox_all(w, step, weight, (float*)u);
  else if (w.dtype == aoti_torch_dtype_float64())
    prox_all(w, step, weight, (double*)u);
  else
    return AOTI_TORCH_FAILURE;
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

OPERATOR(group_prox,
         (AtenTensorHandle w, AtenTensorHandle step, AtenTensorHandle weight,
          AtenTensorHandle* made),
         w, step, weight, made)
