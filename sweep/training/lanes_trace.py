"""A function of many lanes as one graph of tensor operations, for any number of lanes.

The graph is traced once, without data, at a number of lanes that occurs nowhere else: each
multiple of it in the graph is then the number of lanes, and stays open. So does the number of
rows, where asked. The function changes its lanes in place.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_flatten, tree_unflatten

from sweep.training.batches import FoldTable
from sweep.training.lanes_step import LaneStep, State, StepInputs, refilled

LANES, ROWS = 1_000_003, 1_000_033
"""The numbers of lanes and rows traced: primes, which divide nothing but their multiples."""

Function = Callable[[list[Tensor], list[Tensor]], Tensor]
"""(tensors of the lanes, changed in place; tensors that all lanes share) -> anything."""
Form = tuple[tuple[int, ...], torch.dtype]


class Traced(NamedTuple):
    """A graph, and the forms (shape, dtype) of what it takes: of each lane, and shared by all."""

    graph: GraphModule
    lanes: list[Form]
    shared: list[Form]
    open_rows: bool


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a state, of inputs, or of a table, in a fixed order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def step_function(step: LaneStep, state: State, inputs: StepInputs, table: FoldTable) -> Function:
    """The step as a function of `tensors((state, inputs))` and `tensors(table)`.

    What the step returns is copied over the state it was given.
    """
    leaves, structure = tree_flatten((state, inputs))
    table_leaves, table_structure = tree_flatten(table)

    def function(lanes: list[Tensor], shared: list[Tensor]) -> Tensor:
        here, given = tree_unflatten(refilled(leaves, lanes), structure)
        after = step(here, given, tree_unflatten(refilled(table_leaves, shared), table_structure))
        for old, new in zip(tensors(here), tensors(after), strict=True):
            if old is not new:
                old.copy_(new)
        return after.watch.code

    return function


def trace(
    function: Function, lanes: Sequence[Tensor], shared: Sequence[Tensor], open_rows: bool = False
) -> Traced:
    """The function, for tensors like these. `open_rows`: whatever the first length of the shared.

    Raises what the function's code raises when it looks at a tensor's values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        of_lanes = [
            torch.empty((LANES, *t.shape[1:]), dtype=t.dtype, device=t.device) for t in lanes
        ]
        of_all = [
            torch.empty(
                (ROWS, *t.shape[1:]) if open_rows else t.shape, dtype=t.dtype, device=t.device
            )
            for t in shared
        ]
    # A library must return something of its own.
    graph = make_fx(
        lambda lanes, shared: [function(lanes, shared).clone()],
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(of_lanes, of_all)
    graph.graph.eliminate_dead_code()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    opened = {LANES: inputs[0]}
    if open_rows:
        opened[ROWS] = inputs[len(lanes)]
    _open(graph, opened)
    return Traced(
        graph,
        [(tuple(t.shape[1:]), t.dtype) for t in lanes],
        [(tuple(t.shape[1:] if open_rows else t.shape), t.dtype) for t in shared],
        open_rows,
    )


def _open(module: GraphModule, opened: dict[int, Node]) -> None:
    """Replaces each multiple of these primes by that multiple of the inputs' first lengths."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        lengths = {
            prime: graph.call_function(torch.ops.aten.sym_size.int, (node, 0))
            for prime, node in opened.items()
        }
    last = max(lengths.values(), key=list(graph.nodes).index)
    sizes: dict[int, Node] = dict(lengths)

    def size(value: int) -> Node:
        nonlocal last
        if value not in sizes:
            prime = next(p for p in lengths if value % p == 0)
            rest = value // prime
            factor = size(rest) if any(rest % p == 0 for p in lengths) else rest
            with graph.inserting_after(last):
                last = graph.call_function(operator.mul, (lengths[prime], factor))
            sizes[value] = last
        return sizes[value]

    def replaced(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
            return value
        if not any(value % prime == 0 for prime in lengths):
            return value
        if isinstance(value, float):
            raise NotImplementedError("a number of rows enters the computation")
        return size(value)

    for node in list(graph.nodes):
        if node.op == "call_function" and node not in sizes.values():
            node.args = map_aggregate(node.args, replaced)
            node.kwargs = map_aggregate(node.kwargs, replaced)
        if node.op == "call_function" and _is_grouped(node):
            # The compiler would make that a number, the example's, and the library write beyond
            # its memory with another.
            raise NotImplementedError("a convolution has a group a lane")
    graph.lint()
    module.recompile()


def _is_grouped(node: Node) -> bool:
    """Whether the number of lanes is an operator's number of groups."""
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return isinstance(given.get("groups"), Node)


def fingerprint(traced: Traced, more: Sequence[object]) -> str:
    """Equal for graphs that compile to the same program on this machine."""
    graph, lanes, shared, open_rows = traced
    digest = hashlib.sha256(graph.code.encode())
    digest.update(repr((lanes, shared, open_rows)).encode())
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
