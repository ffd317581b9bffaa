"""Operators of lanes that PyTorch has none for. Here they are written in PyTorch's own; compiled
programs have them, and that of problem/group_prox.py, computed by NATIVE_SOURCES, and convolutions
are computed so in eager steps as well once that library is there (`use_native`).

Convolutions of lanes are the three partial derivatives of one form that is linear in each of its
tensors: input x (lanes, C, D, H, W, rows), weight w (lanes, K, C / groups, *kernel) and what comes
out d (lanes, K, D', H', W', rows). Rows come last in memory: shifts then never cut through what a
processor takes at once. Imports torch alone.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweep.problem.group_prox import GROUP_PROX

NATIVE_SOURCES = [
    Path(__file__).with_name(name)
    for name in (
        "lanes_native.h",
        "lanes_native.cpp",
        "lanes_tensors.cpp",
        "lanes_steps.cpp",
        "lanes_convolution.cpp",
        "lanes_group_prox.cpp",
    )
]
Pointer = ctypes.c_void_p
Three = Sequence[int]
"""Of the sides (D, H, W)."""


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (lanes, m, k) @ b (lanes, k, n)."""
    return torch.bmm(a, b)


def matmul_relu(a: Tensor, b: Tensor, row: Tensor) -> Tensor:
    """relu(a @ b + row), with a row (lanes, n) for all rows of a lane's product."""
    return torch.relu(torch.bmm(a, b) + row.unsqueeze(1))


def matmul_gated(a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
    """a @ b, and 0 where the gate (lanes, m, n) is 0 or less: through relu, whose value it is."""
    product: Tensor = torch.ops.aten.threshold_backward(torch.bmm(a, b), gate, 0)
    return product


def kept(numbers: Tensor) -> Tensor:
    """One number of each lane, computed before what needs it: `compile_program.keep_numbers`."""
    return numbers.clone(memory_format=torch.contiguous_format)


def convolve(x: Tensor, w: Tensor, stride: Three, dilation: Three, groups: int) -> Tensor:
    """d[k, p] = sum over c, t of w[k, c, t] x[c, stride p + dilation t]."""
    if _can_be_native(x, w):
        return _call_native("lanes_convolve", (x, w), stride, dilation, groups)
    if x.stride(0) == 0:
        # Lanes that share their input share its patches.
        x = x[:1]
    patches = _patches(x, w.shape[3:], stride, dilation)
    outputs = _by_group(w, groups).flatten(3) @ _by_group(patches, groups).flatten(2, 3).flatten(3)
    return outputs.reshape(*w.shape[:2], *patches.shape[3:])


def input_gradient(
    d: Tensor, w: Tensor, sides: Three, stride: Three, dilation: Three, groups: int
) -> Tensor:
    """x[c, q] = sum over k, p, t with stride p + dilation t = q of w[k, c, t] d[k, p]."""
    if _can_be_native(d, w):
        return _call_native("lanes_input_gradient", (d, w), sides, stride, dilation, groups)
    lanes, rows = d.shape[0], d.shape[-1]
    products = _by_group(w, groups).flatten(3).mT @ _by_group(d, groups).flatten(3)
    products = products.reshape(lanes, -1, w.shape[3:].numel(), *d.shape[2:])
    x = products.new_zeros(lanes, products.shape[1], *sides, rows)
    for product, window in zip(
        products.unbind(2), _windows(w.shape[3:], d.shape[2:5], stride, dilation), strict=True
    ):
        x[window] += product
    return x


def weight_gradient(
    d: Tensor, x: Tensor, kernel: Three, stride: Three, dilation: Three, groups: int
) -> Tensor:
    """w[k, c, t] = sum over p and rows of d[k, p] x[c, stride p + dilation t]."""
    if _can_be_native(d, x):
        return _call_native("lanes_weight_gradient", (d, x), kernel, stride, dilation, groups)
    patches = _by_group(_patches(x, kernel, stride, dilation), groups).flatten(2, 3).flatten(3)
    products = _by_group(d, groups).flatten(3) @ patches.mT
    return products.reshape(*d.shape[:2], -1, *kernel)


def use_native(library: ctypes.CDLL) -> None:
    """From now on convolutions on the CPU are computed by this library of NATIVE_SOURCES."""
    _native[:] = [library]


_native: list[ctypes.CDLL] = []


def _can_be_native(a: Tensor, b: Tensor) -> bool:
    dtypes = (torch.float32, torch.float64)
    return bool(_native) and a.device.type == "cpu" and a.dtype == b.dtype and a.dtype in dtypes


def _call_native(name: str, tensors: Sequence[Tensor], *rest: Three | int) -> Tensor:
    """On the calling thread, and without Python's lock."""
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [Pointer] * 3
    [library], handles = _native, handles_of(tensors)
    given: list[Any] = [Pointer(handle) for handle in handles]
    for value in rest:
        if isinstance(value, int):
            given.append(ctypes.c_int64(value))
        else:
            given += [(ctypes.c_int64 * len(value))(*value), ctypes.c_int64(len(value))]
    made = Pointer()
    failed = getattr(library, f"aoti_torch_cpu_{name}")(*given, ctypes.byref(made))
    for handle in handles:
        library.aoti_torch_delete_tensor_object(Pointer(handle))
    if failed:
        raise RuntimeError(f"{name} failed")
    found: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule(made, None, None))
    if found._use_count() > 1:  # type: ignore[attr-defined]
        # Whatever it is called, it took a reference of its own: the handle still holds the tensor.
        library.aoti_torch_delete_tensor_object(made)
    return found


def handles_of(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Of these tensors, for PyTorch's C interface: to be deleted or given away."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = Pointer, [ctypes.py_object, Pointer]
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return (Pointer * len(capsules))(*[address(capsule, None) for capsule in capsules])


def _by_group(t: Tensor, groups: int) -> Tensor:
    return t.reshape(t.shape[0], groups, -1, *t.shape[2:])


def _windows(kernel: Three, lengths: Three, stride: Three, dilation: Three) -> list[Any]:
    """For each place of the kernel the part of the input that it meets."""
    sides = [
        [slice(i * d, i * d + s * (n - 1) + 1, s) for i in range(k)]
        for k, n, s, d in zip(kernel, lengths, stride, dilation, strict=True)
    ]
    return [(slice(None), slice(None), *window) for window in itertools.product(*sides)]


def _lengths(sides: Three, kernel: Three, stride: Three, dilation: Three) -> list[int]:
    return [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(sides, kernel, stride, dilation, strict=True)
    ]


def _patches(x: Tensor, kernel: Three, stride: Three, dilation: Three) -> Tensor:
    """(lanes, C, places of the kernel, D', H', W', rows)"""
    lengths = _lengths(x.shape[2:5], kernel, stride, dilation)
    return torch.stack([x[window] for window in _windows(kernel, lengths, stride, dilation)], 2)


def _matmul_form(a: Tensor, b: Tensor, more: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def _kept_form(numbers: Tensor) -> Tensor:
    return numbers.new_empty(numbers.shape)


def _convolve_form(x: Tensor, w: Tensor, stride: Three, dilation: Three, groups: int) -> Tensor:
    lengths = _lengths(x.shape[2:5], w.shape[3:], stride, dilation)
    return x.new_empty(*w.shape[:2], *lengths, x.shape[-1])


def _input_gradient_form(d: Tensor, w: Tensor, sides: Three, *how: Any) -> Tensor:
    return d.new_empty(d.shape[0], how[-1] * w.shape[2], *sides, d.shape[-1])


def _weight_gradient_form(d: Tensor, x: Tensor, kernel: Three, *how: Any) -> Tensor:
    return d.new_empty(*d.shape[:2], x.shape[1] // how[-1], *kernel)


_HOW = "int[] stride, int[] dilation, int groups) -> Tensor"
_OPERATORS: list[tuple[Any, Any, str]] = [
    (matmul, _matmul_form, "(Tensor a, Tensor b) -> Tensor"),
    (matmul_relu, _matmul_form, "(Tensor a, Tensor b, Tensor row) -> Tensor"),
    (matmul_gated, _matmul_form, "(Tensor a, Tensor b, Tensor gate) -> Tensor"),
    (kept, _kept_form, "(Tensor numbers) -> Tensor"),
    (convolve, _convolve_form, f"(Tensor x, Tensor w, {_HOW}"),
    (input_gradient, _input_gradient_form, f"(Tensor d, Tensor w, int[] sides, {_HOW}"),
    (weight_gradient, _weight_gradient_form, f"(Tensor d, Tensor x, int[] kernel, {_HOW}"),
]
for _function, _form, _schema in _OPERATORS:
    _name = f"sweep::lanes_{_function.__name__}"
    # What is native takes products of any strides.
    _tags = torch.Tag.flexible_layout if _form is _matmul_form else ()
    torch.library.define(_name, _schema, tags=_tags)
    torch.library.impl(_name, "CompositeExplicitAutograd", _function)
    torch.library.register_fake(_name, _form)

MATMUL = torch.ops.sweep.lanes_matmul.default
MATMUL_RELU = torch.ops.sweep.lanes_matmul_relu.default
MATMUL_GATED = torch.ops.sweep.lanes_matmul_gated.default
KEPT = torch.ops.sweep.lanes_kept.default
CONVOLVE = torch.ops.sweep.lanes_convolve.default
INPUT_GRADIENT = torch.ops.sweep.lanes_input_gradient.default
WEIGHT_GRADIENT = torch.ops.sweep.lanes_weight_gradient.default

_LIST = "const int64_t*, int64_t"
_TENSORS = "AtenTensorHandle, AtenTensorHandle"
_MADE = "AtenTensorHandle*)"
_SIDES = f"{_LIST}, {_LIST}, int64_t, AtenTensorHandle*)"
IN_C = {
    MATMUL: f"aoti_torch_cpu_lanes_matmul({_TENSORS}, AtenTensorHandle*)",
    MATMUL_RELU: f"aoti_torch_cpu_lanes_matmul_relu({_TENSORS}, AtenTensorHandle, {_MADE}",
    MATMUL_GATED: f"aoti_torch_cpu_lanes_matmul_gated({_TENSORS}, AtenTensorHandle, {_MADE}",
    KEPT: "aoti_torch_cpu_lanes_kept(AtenTensorHandle, AtenTensorHandle*)",
    CONVOLVE: f"aoti_torch_cpu_lanes_convolve({_TENSORS}, {_SIDES}",
    INPUT_GRADIENT: f"aoti_torch_cpu_lanes_input_gradient({_TENSORS}, {_LIST}, {_SIDES}",
    WEIGHT_GRADIENT: f"aoti_torch_cpu_lanes_weight_gradient({_TENSORS}, {_LIST}, {_SIDES}",
    GROUP_PROX: f"aoti_torch_cpu_group_prox({_TENSORS}, AtenTensorHandle, AtenTensorHandle*)",
}
"""The functions of the native library that compiled programs call for the operators."""
