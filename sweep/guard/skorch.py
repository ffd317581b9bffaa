"""The guard as a callback of skorch.

    from sweep.guard.skorch import DivergenceGuard
    net = NeuralNetClassifier(Module, callbacks=[DivergenceGuard()])
    net.fit(X, y)                     # raises sweep.Diverged

skorch tells the loss after the update only: the gradients are measured before it, in front of
callbacks that clip if it is the first in the list, and judged after it. Under scikit-learn's
GridSearchCV a setting that diverges is a failed fit.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from sweep.errors import RequestError
from sweep.guard.gradients import Sizes
from sweep.guard.loop import Guard, HasAttributes, watch

try:
    from skorch.callbacks import Callback
except ImportError as error:
    raise RequestError(
        "sweep.guard.skorch needs skorch, which is not installed: pip install skorch."
    ) from error


class DivergenceGuard(Callback):  # type: ignore[misc]
    """Raises sweep.Diverged where training explodes; `guard_.failure` is the diagnosis.

    `trial`: an Optuna trial that gets it as its attribute `failure`. `options`: further arguments
    of `sweep.watch`, as a dict.
    """

    def __init__(
        self, trial: HasAttributes | None = None, options: dict[str, Any] | None = None
    ) -> None:
        self.trial, self.options = trial, options

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Begins to watch the module with the net's optimizers."""
        optimizers = [part for part in vars(net).values() if isinstance(part, Optimizer)]
        self.guard_: Guard = watch(
            net.module_, optimizers, trial=self.trial, **(self.options or {})
        )
        self._sizes: Sizes | None = None

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        """The gradients are as `backward` left them."""
        self._sizes = self.guard_.measure()

    def on_batch_end(self, net: Any, training: bool = False, **kwargs: Any) -> None:
        """The loss of the update just made is known."""
        if training and self._sizes is not None:
            sizes, self._sizes = self._sizes, None
            self.guard_.check(kwargs["loss"], sizes)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """What still waits is looked at."""
        self.guard_.flush()
