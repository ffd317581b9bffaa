"""The guard as a callback of Lightning.

    from sweep.guard.lightning import DivergenceGuard
    trainer = Trainer(callbacks=[DivergenceGuard()])
    trainer.fit(module)               # raises sweep.Diverged

It looks before Lightning clips, once an update whatever `accumulate_grad_batches`, and its state
is in the checkpoint. Works with the package `lightning` or `pytorch_lightning`, whichever the
trainer comes from.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sweep.errors import RequestError
from sweep.guard.loop import Guard, HasAttributes, watch


def _callback_class() -> Any:
    """The class Callback of the Lightning that is in use, else of the one that is installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise RequestError(
        "sweep.guard.lightning needs Lightning, which is not installed: "
        "pip install pytorch-lightning (or lightning)."
    )


class DivergenceGuard(_callback_class()):  # type: ignore[misc]
    """Raises sweep.Diverged where training explodes; `guard.failure` is the diagnosis.

    `trial`: an Optuna trial that gets it as its attribute `failure`. Further arguments as of
    `sweep.watch`.
    """

    def __init__(self, trial: HasAttributes | None = None, **options: Any) -> None:
        self.trial, self.options = trial, options
        self.guard: Guard | None = None
        self._loss: Tensor | float = 0.0
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to watch the module with the optimizers that the trainer has made."""
        plugin = trainer.precision_plugin
        options = {
            "scaler": getattr(plugin, "scaler", None),
            "clip_norm": trainer.gradient_clip_val or None,
            **self.options,
        }
        self.guard = watch(pl_module, trainer.optimizers, trial=self.trial, **options)
        if self._restored is not None:
            self.guard.load_state_dict(self._restored)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Adds up the losses of the batches that make one update."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._loss = self._loss + loss.detach() / (scaler.get_scale() if scaler else 1.0)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """The gradients are unscaled here, and not clipped yet."""
        loss, self._loss = self._loss, 0.0
        if self.guard is not None:
            self.guard.check(loss)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """What still waits is looked at."""
        if self.guard is not None:
            self.guard.flush()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return self.guard.state_dict() if self.guard is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint, before training goes on."""
        self._restored = state_dict or None
        if self.guard is not None and self._restored is not None:
            self.guard.load_state_dict(self._restored)
