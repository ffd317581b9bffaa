"""Compiles a traced step into a shared library, in a process of its own:
python compile_program.py SOURCE.

SOURCE holds a pickled dict: `graph`, `lanes` and `rows` (shape and dtype of its inputs), `library`
(the file to write). The library computes on one thread. A process of its own, because compiling
takes many seconds of Python that would hold up training, and because it can be ended at any time.
Imports torch alone.
"""

import os
import pickle
import sys
import zipfile

import torch

# Unpickling a graph names it without importing it (torch 2.13).
import torch._higher_order_ops.triton_kernel_wrap

FIXED = "an operator of the model fixes the number of lanes"


def main(source: str) -> None:
    with open(source, "rb") as file:
        job = pickle.load(file)
    import torch._inductor.config as inductor

    torch.set_num_threads(1)
    inductor.compile_threads = 1
    lanes = [torch.empty(shape, dtype=dtype) for shape, dtype in job["lanes"]]
    rows = [torch.empty(shape, dtype=dtype) for shape, dtype in job["rows"]]
    many = torch.export.Dim("lanes", min=2, max=2**16)
    exported = torch.export.export(
        job["graph"],
        (lanes, rows),
        strict=False,
        dynamic_shapes=([{0: many} for _ in lanes], [None for _ in rows]),
    )
    if any("convolution" in node.name and is_grouped(node) for node in exported.graph.nodes):
        raise NotImplementedError(FIXED)
    package = f"{source}.pt2"
    torch._inductor.aoti_compile_and_package(exported, package_path=package)
    if not is_open(exported):
        # With another number the library would write beyond its memory.
        raise NotImplementedError(FIXED)
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        if any("extern_kernel" in name for name in names):
            raise NotImplementedError("an operator of the model has no compiled form")
        unfinished = f"{source}.so"
        with open(unfinished, "wb") as file:
            file.write(archive.read(next(name for name in names if name.endswith(".so"))))
    os.chmod(unfinished, 0o700)
    os.replace(unfinished, job["library"])


def is_grouped(node: torch.fx.Node) -> bool:
    """Whether an operator has a group a lane: the compiler would make that a number, and see below,
    after minutes.
    """
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return isinstance(given.get("groups"), torch.fx.Node)


def is_open(exported: torch.export.ExportedProgram) -> bool:
    """Whether the number of lanes is still a symbol: the compiler may replace it by a number."""
    # What is no tensor of a lane, the graph's constants, comes before them.
    name = exported.graph_signature.user_inputs[0]
    first = next(node for node in exported.graph.nodes if node.name == name)
    lanes = first.meta["val"].shape[0]
    return isinstance(lanes, torch.SymInt) and lanes.node.maybe_as_int() is None


if __name__ == "__main__":
    main(sys.argv[1])
