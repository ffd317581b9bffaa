"""Compiles traced graphs into shared libraries, one by one: `main` of a process of its own.

SOURCE holds a pickled list of dicts: `graph`, `lanes` and `shared` (shape and dtype of its inputs,
those of the lanes without the number of lanes, the shared ones without the number of rows if that
is open), `open_rows`, `library` (the file to write), `native` (the library of NATIVE_SOURCES, to be
written if it is not there). A library computes on one thread. A process of its own, because
compiling takes many seconds of Python that would hold up training, and because it can be ended at
any time; it ends by itself when the process PARENT is gone, unless a file SOURCE.finish says that
it may come to its end. What another process is compiling is waited for. Imports torch alone.
"""

import math
import os
import pickle
import re
import shlex
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# Unpickling a graph names it without importing it (torch 2.13).
import torch._higher_order_ops.triton_kernel_wrap

from sweep.training import lanes_operators
from sweep.training.lanes_cache import FINISH, alone, clean_up

EXAMPLE_LANES, EXAMPLE_ROWS = 8, 24
FINISH_SECONDS = 180.0
"""So long after its parent's end a process is done or ends."""
MANY = 64
"""Tensors of so many entries a lane are worth what keeping a number takes."""
NO_TENSORS = re.compile(
    "check|device_type_\\w+|dtype_\\w+|layout_\\w+|grad_mode_(is_enabled|set_enabled)"
)
"""Functions of PyTorch's C interface that are given no tensor."""
NATIVE_TYPES = (torch.float32, torch.float64)
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-fPIC", "-shared")


def main(source: str, parent: int) -> None:
    threading.Thread(target=end_with, args=(parent, source), daemon=True).start()
    with open(source, "rb") as file:
        jobs = pickle.load(file)
    import torch._inductor.config as inductor

    torch.set_num_threads(1)
    inductor.compile_threads = 1
    inductor.aot_inductor.custom_ops_to_c_shims = {
        operator: [f"AOTITorchError {function}"]
        for operator, function in lanes_operators.IN_C.items()
    }
    for i, job in enumerate(jobs):
        with alone(job["library"]):
            if os.path.exists(job["library"]):
                continue
            native = make_native(lanes_operators.NATIVE_SOURCES, job["native"], f"{source}.native")
            compile_one(job, f"{source}.{i}", native)
    if os.path.exists(source + FINISH):
        # Nobody else will.
        clean_up(source)


def end_with(parent: int, source: str) -> None:
    """Ends this process, and the C++ compiler it has started, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    if os.path.exists(source + FINISH):
        time.sleep(FINISH_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def make_native(sources: Sequence[Path], library: str, scratch: str) -> bool:
    """Makes the library of what is native, in `sources`, unless it is there. Whether it is: an old
    compiler may not know how, and PyTorch's own products serve too.
    """
    if not os.path.exists(library):
        import torch._inductor.config as inductor
        from torch.utils.cpp_extension import include_paths, library_paths

        compiler = shlex.split(next(c for c in inductor.cpp.cxx if c))
        torch_s = [f"-I{p}" for p in include_paths()] + [f"-L{p}" for p in library_paths()]
        code = [str(source) for source in sources if source.suffix == ".cpp"]
        files = [*code, "-o", scratch, "-ltorch_cpu"]
        command = [*compiler, *FLAGS, *torch_s, *files]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        os.chmod(scratch, 0o700)
        os.replace(scratch, library)
    return True


def multiply_natively(graph: torch.fx.GraphModule) -> None:
    """Has the graph's products computed by lanes_native.cpp."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.bmm.default:
            node.target = lanes_operators.MATMUL
    graph.recompile()


def end_products(exported: torch.export.ExportedProgram) -> None:
    """Has products go through relu, and through the derivative of a relu, as they are stored: else
    they would be written, read and written again.
    """
    graph, aten = exported.graph, torch.ops.aten
    for node in list(graph.nodes):
        operator: Any = lanes_operators.MATMUL_GATED
        found: list[tuple[torch.fx.Node | None, torch.fx.Node | None]] = []
        args: Any = node.args
        if node.target is aten.threshold_backward.default and args[2] == 0:
            found = [(sole_product(args[0]), args[1])]
        elif node.target is aten.relu.default and is_sum(args[0]) and len(args[0].users) == 1:
            operator = lanes_operators.MATMUL_RELU
            one, other = args[0].args
            found = [(sole_product(a), row_of_lanes(b)) for a, b in ((one, other), (other, one))]
        for product, more in found:
            if product is not None and more is not None:
                with graph.inserting_before(node):
                    ended = graph.call_function(operator, (*product.args, more))
                ended.meta = dict(node.meta)
                node.replace_all_uses_with(ended)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()


def is_sum(node: torch.fx.Node) -> bool:
    """Whether it is one of two tensors, as they are."""
    is_add = node.target is torch.ops.aten.add.Tensor and not node.kwargs
    return is_add and len(node.all_input_nodes) == 2


def sole_product(node: torch.fx.Node) -> torch.fx.Node | None:
    """The product that a node is, if it has one user and is native."""
    shape = node.meta["val"].shape
    while len(node.users) == 1 and str(node.meta["val"].shape) == str(shape):
        if node.target is lanes_operators.MATMUL:
            return node if node.meta["val"].dtype in NATIVE_TYPES else None
        if not is_view(node) and node.target is not torch.ops.aten._unsafe_view.default:
            break
        node = node.all_input_nodes[0]
    return None


def row_of_lanes(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor (lanes, n) that a node (lanes, 1, n) is a view of."""
    if node.target is not torch.ops.aten.view.default:
        return None
    row, shape = node.all_input_nodes[0], node.meta["val"].shape
    if len(shape) != 3 or str(row.meta["val"].shape) != str(torch.Size([shape[0], shape[2]])):
        return None
    # As the bias of a mapped module is.
    is_itself = row.target is torch.ops.aten.mul.Scalar and row.args[1] == 1
    return row.all_input_nodes[0] if is_itself else row


def keep_numbers(exported: torch.export.ExportedProgram) -> None:
    """Has what each lane has one number of, as its rate, be computed before the tensors that need
    it: the compiler would write that into their loops, anew for every entry, and not know their
    results for so simple that they can be written where the parameters are.
    """
    graph, lanes = exported.graph, str(number_of_lanes(exported))
    each = {node: _of_a_lane(node, lanes) for node in graph.nodes}
    found: dict[torch.fx.Node, None] = {}
    for node in graph.nodes:
        for given in node.all_input_nodes if each[node] >= MANY else ():
            while each[given] == 1 and is_view(given):
                given = given.all_input_nodes[0]
            if each[given] == 1 and is_pointwise(given):
                found[given] = None
    for node in found:
        users = list(node.users)
        with graph.inserting_after(node):
            kept = graph.call_function(lanes_operators.KEPT, (node,))
        kept.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, kept)
    exported.graph_module.recompile()


def _of_a_lane(node: torch.fx.Node, lanes: str) -> int:
    """How many numbers of each lane a node holds; 0 if none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.ndim or str(value.shape[0]) != lanes:
        return 0
    sides = value.shape[1:]
    # Of a number of rows that is open nothing is asked: the answer would be a condition.
    return MANY if any(isinstance(side, torch.SymInt) for side in sides) else math.prod(sides)


def is_view(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view


def is_pointwise(node: torch.fx.Node) -> bool:
    operator = node.target
    return isinstance(operator, torch._ops.OpOverload) and torch.Tag.pointwise in operator.tags


def bound_to_own(library: bytes) -> bytes:
    """A program that calls the native library's functions for tensors instead of PyTorch's, if it
    has all that the program calls; else as it is.

    They have names of the same length, which a shared library of the ELF format keeps as they are,
    between zeros.
    """
    own = own_functions()
    names = {name.decode() for name in re.findall(rb"(?<=\0)aoti_torch_(\w+)(?=\0)", library)}
    if library[:4] != b"\x7fELF" or not all(map(NO_TENSORS.fullmatch, names - own)):
        return library
    for name in names & own:
        old, new = (f"\0aoti_{whose}_{name}\0".encode() for whose in ("torch", "sweep"))
        library = library.replace(old, new)
    return library


def own_functions() -> set[str]:
    """Those of PyTorch's C interface that the native library has too."""
    declared = re.findall(r"\baoti_sweep_(\w+);", lanes_operators.NATIVE_SOURCES[0].read_text())
    operators = [form.partition("(")[0] for form in lanes_operators.IN_C.values()]
    return {*declared, *(name.removeprefix("aoti_torch_") for name in operators)}


def compile_one(job: dict[str, Any], scratch: str, native: bool) -> None:
    if native:
        multiply_natively(job["graph"])
    lanes = [torch.empty((EXAMPLE_LANES, *shape), dtype=dtype) for shape, dtype in job["lanes"]]
    lead = (EXAMPLE_ROWS,) if job["open_rows"] else ()
    shared = [torch.empty((*lead, *shape), dtype=dtype) for shape, dtype in job["shared"]]
    many = torch.export.Dim("lanes", min=2, max=2**16)
    rows = {0: torch.export.Dim("rows", min=2, max=2**30)} if job["open_rows"] else None
    exported = torch.export.export(
        job["graph"],
        (lanes, shared),
        strict=False,
        dynamic_shapes=([{0: many} for _ in lanes], [rows for _ in shared]),
    )
    if native:
        end_products(exported)
        keep_numbers(exported)
    package = f"{scratch}.pt2"
    torch._inductor.aoti_compile_and_package(exported, package_path=package)
    if not is_open(exported):
        # With another number the library would write beyond its memory.
        raise NotImplementedError("an operator of the model fixes the number of lanes")
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        if any("extern_kernel" in name for name in names):
            raise NotImplementedError("an operator of the model has no compiled form")
        unfinished = f"{scratch}.so"
        with open(unfinished, "wb") as file:
            library = archive.read(next(name for name in names if name.endswith(".so")))
            file.write(bound_to_own(library) if native and is_known(exported) else library)
    os.chmod(unfinished, 0o700)
    os.replace(unfinished, job["library"])


def is_open(exported: torch.export.ExportedProgram) -> bool:
    """Whether the number of lanes is still a symbol: the compiler may replace it by a number."""
    lanes = number_of_lanes(exported)
    return isinstance(lanes, torch.SymInt) and lanes.node.maybe_as_int() is None


def is_known(exported: torch.export.ExportedProgram) -> bool:
    """Whether the native library knows the numbers that its operators are given."""
    return all(
        node.meta["val"].dtype in NATIVE_TYPES
        for node in exported.graph.nodes
        if node.target in lanes_operators.IN_C and node.target is not lanes_operators.KEPT
    )


def number_of_lanes(exported: torch.export.ExportedProgram) -> int | torch.SymInt:
    # What is no tensor of a lane, the graph's constants, comes before them.
    name = exported.graph_signature.user_inputs[0]
    first = next(node for node in exported.graph.nodes if node.name == name)
    lanes: int | torch.SymInt = first.meta["val"].shape[0]
    return lanes
