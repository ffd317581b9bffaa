"""How many threads torch computes on, for a while; and threads that each compute by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from sweep.training.device import CPU


class Workers(ThreadPoolExecutor):
    """As many threads as torch computes on, each of which does what it is given on its own core:
    one thing after the other, in the order in which they were asked for. One beside a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device == CPU else 1
        super().__init__(self.count, "lanes", self.begin)

    def begin(self) -> None:
        """What each of them does first."""
        torch.set_num_threads(1)


@contextlib.contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Torch on so many threads (None: as many as it has)."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
