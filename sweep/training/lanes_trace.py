"""A program's step as one graph of tensor operations, for any number of lanes.

The graph is traced once, without data, at a number of lanes that occurs nowhere else: each
multiple of it in the graph is then the number of lanes, and stays open. It changes the state in
place: what the step returns is copied over what it was given.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_flatten, tree_unflatten

from sweep.training.batches import FoldTable
from sweep.training.lanes_step import LaneStep, State, StepInputs

LANES = 1_000_003
"""The number of lanes traced: a prime, so that only multiples of the number of lanes divide it."""


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a state, of inputs, or of a table, in a fixed order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def trace(step: LaneStep, state: State, inputs: StepInputs, table: FoldTable) -> GraphModule:
    """The step as a function of `tensors(state)`, `tensors(inputs)`, `tensors(table)`.

    It changes the state's tensors in place and returns the watch's codes. Raises what the step's
    code raises when it looks at a tensor's values.
    """
    leaves, structure = tree_flatten((state, inputs))
    table_leaves, table_structure = tree_flatten(table)

    def flat(lanes: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        of_lanes, of_rows = iter(lanes), iter(rows)
        here, given = tree_unflatten(
            [next(of_lanes) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
        data = tree_unflatten(
            [next(of_rows) if isinstance(leaf, Tensor) else leaf for leaf in table_leaves],
            table_structure,
        )
        after = step(here, given, data)
        for old, new in zip(tensors(here), tensors(after), strict=True):
            if old is not new:
                old.copy_(new)
        return [after.watch.code.clone()]

    with FakeTensorMode(allow_non_fake_inputs=True):
        of_lanes = [
            torch.empty((LANES, *t.shape[1:]), dtype=t.dtype, device=t.device)
            for t in tensors((state, inputs))
        ]
        of_rows = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors(table)]
    graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(of_lanes, of_rows)
    _open_lanes(graph)
    return graph


def _open_lanes(module: GraphModule) -> None:
    """Replaces each multiple of LANES by that multiple of the first input's length."""
    graph = module.graph
    graph.eliminate_dead_code()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        length = graph.call_function(torch.ops.aten.sym_size.int, (inputs[0], 0))
    sizes: dict[int, Node] = {1: length}

    def opened(value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool) or value == 0 or value % LANES:
            return value
        times = value // LANES
        if times not in sizes:
            with graph.inserting_after(length):
                sizes[times] = graph.call_function(operator.mul, (length, times))
        return sizes[times]

    for node in list(graph.nodes):
        if node.op == "call_function" and node is not length:
            node.args = map_aggregate(node.args, opened)
            node.kwargs = map_aggregate(node.kwargs, opened)
    graph.lint()
    module.recompile()


def fingerprint(graph: GraphModule, examples: Sequence[Tensor], more: Sequence[object]) -> str:
    """Equal for graphs that compile to the same program on this machine."""
    digest = hashlib.sha256(graph.code.encode())
    for t in examples:
        digest.update(repr((t.dtype, tuple(t.shape[1:]), t.device.type)).encode())
    for name, t in sorted(_constants(graph).items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr(list(more)).encode())
    return digest.hexdigest()[:32]


def _constants(graph: GraphModule) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value: Any = graph
            for part in str(node.target).split("."):
                value = getattr(value, part)
            found[str(node.target)] = value
    return found
