// Many steps of a compiled program in one call, of lanes that several threads share.
//
// The lanes are taken in blocks, whose weights stay in a core's own cache, and a block's steps in
// parts. Whoever is free takes the next part there is: a thread that had to wait, for Python's lock
// or for its core, then leaves more of them to the others, and all come to their end together.

#include <algorithm>
#include <thread>
#include <vector>

#include "lanes_native.h"

namespace {

// AOTInductorModelContainerRun of a compiled program.
typedef AOTITorchError (*Run)(void* container, AtenTensorHandle* inputs, size_t n_inputs,
                              AtenTensorHandle* outputs, size_t n_outputs, void* stream,
                              void* executor);

// A part of a tensor: from `offset` on, without its first axis if `drop`, of its lanes so many.
template <class Holder>
bool part_of(AtenTensorHandle whole, int64_t drop, int64_t axis, int64_t first, int64_t count,
             int64_t offset, AtenTensorHandle* part) {
  int64_t dim, *sizes, *strides;
  if (Holder::dim(whole, &dim) || Holder::sizes(whole, &sizes) || Holder::strides(whole, &strides))
    return false;
  std::vector<int64_t> narrow(sizes, sizes + dim);
  narrow[axis] = count;
  offset = offset * strides[0] + first * strides[axis];
  return !Holder::reinterpret(whole, dim - drop, narrow.data() + drop, strides + drop, offset,
                              part);
}

template <class Holder>
struct Work {
  Run run;
  void* container;
  const AtenTensorHandle* given;
  const bool* is_stepwise;
  int64_t n_given, n_state;

  // Steps from `begin` to `end` of `count` lanes from `first` on. Whether they succeeded.
  bool step(int64_t begin, int64_t end, int64_t first, int64_t count) const {
    std::vector<AtenTensorHandle> lanes(n_state), inputs(n_given);
    bool good = true;
    int64_t made = 0;
    for (; good && made < n_state; made++)
      good = part_of<Holder>(given[made], 0, 0, first, count, 0, &lanes[made]);
    if (!good) made--;
    for (int64_t at = begin; good && at < end; at++) {
      // The program takes over the handles that it is given.
      for (int64_t i = 0; good && i < n_given; i++)
        if (i < n_state)
          good = !Holder::again(lanes[i], &inputs[i]);
        else if (is_stepwise[i])
          good = part_of<Holder>(given[i], 1, 1, first, count, at, &inputs[i]);
        else
          good = !Holder::again(given[i], &inputs[i]);
      AtenTensorHandle returned;
      good = good && !run(container, inputs.data(), n_given, &returned, 1, nullptr, nullptr);
      if (good) Holder::drop(returned);
    }
    for (int64_t i = 0; i < made; i++) Holder::drop(lanes[i]);
    return good;
  }
};

// The step that a part begins with. Parts grow shorter: the last ones are what threads wait for.
int64_t begin_of(int64_t part, int64_t n_parts, int64_t steps) {
  const int64_t left = n_parts - part;
  return steps - steps * left * left / (n_parts * n_parts);
}

// Until all lanes are through or someone has failed: see `sweep_run_steps`.
template <class Holder>
AOTITorchError run_steps(const Work<Holder>& work, int64_t steps, int64_t lanes, int64_t* turns,
                         int64_t n_blocks, int64_t n_parts) {
  for (;;) {
    const int64_t turn = __atomic_fetch_add(turns, 1, __ATOMIC_RELAXED);
    const int64_t block = turn % n_blocks, part = turn / n_blocks;
    if (part >= n_parts) return AOTI_TORCH_SUCCESS;
    int64_t *done = turns + 1 + block, so_far;
    while ((so_far = __atomic_load_n(done, __ATOMIC_ACQUIRE)) != part) {
      if (so_far < 0) return AOTI_TORCH_FAILURE;
      std::this_thread::yield();
    }
    const int64_t first = lanes * block / n_blocks, last = lanes * (block + 1) / n_blocks;
    const bool good = work.step(begin_of(part, n_parts, steps), begin_of(part + 1, n_parts, steps),
                                first, last - first);
    __atomic_store_n(done, good ? part + 1 : -1, __ATOMIC_RELEASE);
    if (!good) return AOTI_TORCH_FAILURE;
  }
}

// PyTorch's tensor as lanes_tensors.cpp holds one: the same numbers.
bool take_over(AtenTensorHandle handle, AtenTensorHandle* taken) {
  Tensor t;
  return t.read<Torch>(handle) &&
         !aoti_sweep_create_tensor_from_blob(t.data, t.dim, t.sizes, t.strides, 0, t.dtype,
                                             aoti_torch_device_type_cpu(), 0, taken);
}

}  // namespace

extern "C" {

// Runs a program `steps` times, until all lanes are through or someone has failed. It is given each
// tensor whole, as PyTorch's: the first `n_state` with the lanes first, those that are stepwise
// with the steps first and the lanes second, and those that all lanes share. What it returns, one
// tensor, is dropped. `turns`, zeros at first, is the same for all who share the lanes: the parts
// that were taken, and for each block those that are done, or -1 where one has failed.
// `holds_own`: the program calls the functions of lanes_tensors.cpp.
AOTI_TORCH_EXPORT AOTITorchError sweep_run_steps(Run run, void* container, int64_t steps,
                                                 int64_t lanes, const AtenTensorHandle* given,
                                                 const bool* is_stepwise, int64_t n_given,
                                                 int64_t n_state, int64_t* turns, int64_t n_blocks,
                                                 int64_t n_parts, bool holds_own) {
  if (!holds_own) {
    const Work<Torch> work{run, container, given, is_stepwise, n_given, n_state};
    return run_steps(work, steps, lanes, turns, n_blocks, n_parts);
  }
  std::vector<AtenTensorHandle> own(n_given);
  int64_t taken = 0;
  while (taken < n_given && take_over(given[taken], &own[taken])) taken++;
  AOTITorchError result = AOTI_TORCH_FAILURE;
  if (taken == n_given) {
    const Work<Sweep> work{run, container, own.data(), is_stepwise, n_given, n_state};
    result = run_steps(work, steps, lanes, turns, n_blocks, n_parts);
  }
  for (int64_t i = 0; i < taken; i++) aoti_sweep_delete_tensor_object(own[i]);
  return result;
}

}  // extern "C"
