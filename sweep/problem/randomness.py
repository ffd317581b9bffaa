"""Every random draw follows from the study's seed, never from what was drawn before it.

So a trial can be replayed alone, and trials are compared on the same starts and the same orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray


class Stream(IntEnum):
    """What a seed is for: the last part of every `derive_seed`, so that no two uses share one."""

    INITIALIZATION = 1
    ORDER = 2
    HELD_OUT = 0x1E4E
    STEP = 0x57E9


def derive_seed(*parts: int) -> int:
    """A seed in [0, 2^63) from whole numbers: BLAKE2b (RFC 7693) of their decimal digits.

    The same on every platform and in every version; different parts give unrelated seeds.
    """
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def permutation(seed: int, fold: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which an epoch visits n rows, a uniformly random permutation of 0..n-1.

    The ranks of n raw 64-bit draws: NumPy keeps the raw stream of a bit generator between
    versions, which it does not promise for `Generator.permutation` (NEP 19).
    """
    raw = np.random.PCG64(derive_seed(seed, fold, epoch, Stream.ORDER)).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it PyTorch's own generators begin at `seed`; after it the CPU's is as it was before.

    The same draws as after `torch.manual_seed`, which writes down the stack of its callers for the
    day that CUDA is used: a quarter of a millisecond, and more the deeper it is called.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)
        yield
