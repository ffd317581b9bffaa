"""Where a study trains: on the CPU, or on a GPU that torch sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sweep.errors import RequestError
from sweep.spec import StudySpec
from sweep.spec.exact import EXACT

DEVICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")


def choose_device(name: str, spec: StudySpec) -> torch.device:
    """The device of this name. `auto` is `cuda`, torch's name for a GPU of NVIDIA or AMD, where
    torch sees one, else the CPU; the exact solver's is always the CPU. On a GPU float32 is float32
    from then on, also in this process's other convolutions.

    Raises RequestError for other names, and for `cuda` where it cannot be had.
    """
    if name not in DEVICES:
        raise RequestError(f"No device {name!r}. Devices: {', '.join(DEVICES)}.")
    exact = spec.train.optimizer == EXACT
    if name == "cpu" or (name == "auto" and (exact or not torch.cuda.is_available())):
        return CPU
    if exact:
        raise RequestError(
            f"Device cuda was asked for, but train.optimizer {EXACT} solves on the CPU: give "
            "device auto or cpu, or another optimizer."
        )
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = (
            f"torch {torch.__version__} finds no GPU here: check its driver (nvidia-smi)"
            if built
            else f"torch {torch.__version__} is built for the CPU alone: install a build for CUDA"
        )
        raise RequestError(f"Device cuda was asked for, but {why}, or give device auto or cpu.")
    # Else torch's convolutions round float32 to 10 bits (TF32), and scores to 3 digits.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def moved(tree: Any, device: torch.device) -> Any:
    """The same tree, its tensors on the device; those that are there already are not copied."""
    return tree_map_only(Tensor, lambda t: t.to(device), tree)
