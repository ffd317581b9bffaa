"""Lanes of the exact solver: many members on one fold that take an iteration together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from sweep.training.convex_loss import FoldLoss, dot
from sweep.training.convex_member import ConvexMember
from sweep.training.convex_penalty import Blocks, ConvexPenalty, Separable, stack_separable
from sweep.training.fista import GROWTH, SAFETY, Point, guess

THREADED_FLOPS = 2e7
"""Of one iteration: what is smaller is done before a second thread has woken up, and waiting for
one costs dearly where other processes want it too.
"""

Prox = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def threads(*, worth: bool) -> Iterator[None]:
    """All of torch's threads where they are worth it, else one."""
    before = torch.get_num_threads()
    if worth or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stack:
    """Lanes on one fold, all between the same two looks."""

    def __init__(self, loss: FoldLoss) -> None:
        self.loss = loss
        self.tasks: list[ConvexMember] = []
        self.at: Point | None = None
        self.prox: Prox | None = None
        self.done = 0

    def join(self, tasks: Sequence[ConvexMember], points: Sequence[Point]) -> None:
        """Members that start, or come back from Newton's method."""
        new = Point(*(torch.stack(parts) for parts in zip(*points, strict=True)))
        if self.at is not None:
            new = Point(*(torch.cat(parts) for parts in zip(self.at, new, strict=True)))
        self.at, self.prox = new, None
        self.tasks += tasks

    def keep(self, places: Sequence[int]) -> None:
        """The lanes at these places stay."""
        if len(places) == len(self.tasks) or self.at is None:
            return
        index = torch.tensor(places, dtype=torch.int64)
        self.at = Point(*(part[index] for part in self.at)) if places else None
        self.tasks, self.prox = [self.tasks[i] for i in places], None

    def guess(self) -> None:
        """Takes lanes to their optimum where that is one solve away."""
        assert self.at is not None
        at = self.at
        residuals = at.residual.tolist()
        active = torch.count_nonzero(at.w, dim=(1, 2)).tolist()
        due = [
            i
            for i, task in enumerate(self.tasks)
            if residuals[i] > task.tolerance and task.may_guess(active[i])
        ]
        if not due:
            return
        tasks, index = [self.tasks[i] for i in due], torch.tensor(due)
        penalty = stack_separable([task.penalty for task in tasks])
        with threads(worth=False):
            new = guess(tasks, penalty, Point(*(part[index] for part in at)))
        self.at = Point(*(p.index_copy(0, index, n) for p, n in zip(at, new, strict=True)))

    def iterate(self) -> None:
        assert self.at is not None
        if self.prox is None:
            self.prox = _prox_of_lanes([task.penalty for task in self.tasks])
        with threads(worth=len(self.tasks) * self.loss.flops >= THREADED_FLOPS):
            self.at = iterate_lanes(self.loss, self.prox, self.at)
        self.done += 1


def iterate_lanes(loss: FoldLoss, prox: Prox, at: Point) -> Point:
    """`iterate` for lanes; a lane whose step proves too long stays where it is."""
    step = at.step[:, None, None]
    slope = loss.slope(at.v_image)
    u = prox(torch.sub(at.v, loss.gradient(slope).mul_(step)), at.step)
    d, u_image = u - at.v, loss.image(u)
    bend = loss.curvature(d, at.v_image, slope, u_image)
    size = dot(d, d)
    allowed = SAFETY * size / bend.clamp(min=1e-300)
    too_long = bend * at.step > size
    longer = torch.minimum(GROWTH * at.step, torch.maximum(at.step, allowed))
    moved = u - at.w
    theta = (1 + torch.sqrt(1 + 4 * at.theta**2 * at.step / longer)) / 2
    beta = (at.theta - 1) / theta
    again = dot(d, moved) < 0
    theta, beta = torch.where(again, 1.0, theta), torch.where(again, 0.0, beta)
    by = beta[:, None, None]
    new = Point(
        w=u,
        w_image=u_image,
        v=torch.addcmul(u, by, moved),
        v_image=torch.addcmul(u_image, by, u_image - at.w_image),
        theta=theta,
        step=longer,
        residual=d.abs().amax((1, 2)) / at.step,
    )
    if not too_long.any():
        return new
    stay = too_long.nonzero().squeeze(1)
    for part, old in zip(new, at, strict=True):
        part[stay] = old[stay]
    new.step[stay] = torch.minimum(at.step / 2, allowed)[stay]
    return new


def _prox_of_lanes(penalties: Sequence[ConvexPenalty]) -> Prox:
    """prox(u (L, K, P), step (L,)) of the lanes' own penalties."""
    first = penalties[0]
    if isinstance(first, Separable):
        stacked = stack_separable(penalties)
        return lambda u, step: stacked.prox(u, step[:, None, None])
    if first.is_custom:

        def one_by_one(u: Tensor, step: Tensor) -> Tensor:
            lanes = zip(penalties, u, step, strict=True)
            return torch.stack([penalty.prox(part, t) for penalty, part, t in lanes])

        return one_by_one
    blocks = [p for p in penalties if isinstance(p, Blocks)]
    parts = tree_map(
        lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0],
        *[(p.weight, p.bias) for p in blocks],
    )
    dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, parts)

    def one(parts: tuple[object, object], u: Tensor, step: Tensor) -> Tensor:
        return first._replace(weight=parts[0], bias=parts[1]).prox(u, step)

    return lambda u, step: vmap(one, in_dims=(dims, 0, 0))(parts, u, step)
