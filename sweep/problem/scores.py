"""What a trial is judged by: this project's names, and every scikit-learn scorer's name."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names, log_loss, make_scorer
from torch import Tensor

from sweep.errors import SpecError, SweepError
from sweep.problem.score_formulas import FORMULAS

TensorScore = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(outputs (n, K), y (n,), row weights (n,)) -> scalar."""

LOSSES = {
    "log_loss": "neg_log_loss",
    "mse": "neg_mean_squared_error",
    "rmse": "neg_root_mean_squared_error",
    "mae": "neg_mean_absolute_error",
}
"""Own names that are minimised, and scikit-learn's name for minus the same."""

CLASSIFICATION = ("log_loss", "accuracy", "balanced_accuracy", "f1_macro", "roc_auc")
REGRESSION = ("mse", "rmse", "mae", "r2")


@dataclass(frozen=True)
class Score:
    """A score by name. `tensor` is its direct formula, None where there is only scikit-learn's.

    tensor(outputs (n, K), y (n,), w (n,)) -> scalar can be vmapped; rows of weight 0 do not count.
    Both ways give the worst infinity if an output is not finite, and NaN if the score is undefined
    for these rows although every output is finite (R^2 of one row, ROC AUC of one class).
    """

    name: str
    direction: Literal["minimize", "maximize"]
    tensor: TensorScore | None
    _scorer: Any = field(repr=False)
    _sign: int = field(repr=False)
    _estimator: Any = field(repr=False)

    @property
    def worst(self) -> float:
        return math.inf if self.direction == "minimize" else -math.inf

    def evaluate(
        self,
        outputs: NDArray[Any],
        y: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> float:
        """scikit-learn's score of outputs (n, K), as a model returns them, for y (n,).

        Raises SweepError where scikit-learn refuses (the score takes no weights, or these rows
        lack a class that it needs).
        """
        outputs = np.asarray(outputs, dtype=np.float64)
        if not np.isfinite(outputs).all():
            return self.worst
        y = np.asarray(y).astype(np.float64 if isinstance(self._estimator, _Regressor) else int)
        given = {} if weights is None else {"sample_weight": np.asarray(weights, dtype=np.float64)}
        try:
            # An undefined score warns and returns NaN, which is the answer here.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return self._sign * float(self._scorer(self._estimator, outputs, y, **given))
        except TypeError as error:
            if weights is None:
                raise
            raise SpecError(f"score: {self.name} takes no row weights ({error}).") from None
        except ValueError as error:
            raise SweepError(f"score: {self.name} cannot be computed: {error}") from None


class _Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted model whose input is its output, for scorers, which insist on a model."""

    fitted_ = True

    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(outputs)[:, 0]


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier whose input is its logits; classes are 0..n_classes-1."""

    def __init__(self, n_classes: int = 2) -> None:
        self.n_classes = n_classes
        self.classes_ = np.arange(n_classes)

    def decision_function(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs[:, 0] if self.n_classes == 2 else outputs

    def predict_proba(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if self.n_classes == 2:
            return np.column_stack([expit(-outputs[:, 0]), expit(outputs[:, 0])])
        return np.asarray(softmax(outputs, axis=1))

    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if self.n_classes == 2:
            return (outputs[:, 0] > 0).astype(int)
        return np.asarray(outputs.argmax(axis=1))


def check_score(name: str, task: str) -> None:
    """Refuses a score that does not exist or is not for the task (regression, classification)."""
    if name not in (*CLASSIFICATION, *REGRESSION, *get_scorer_names()):
        known = [*_own(task), *(n for n in get_scorer_names() if _task_of(n) in (task, None))]
        raise SpecError(f"score: {name!r} is unknown{_nearest(name, known, task)}")
    made_for = _task_of(name)
    if made_for not in (task, None):
        raise SpecError(
            f"score: {name} is for {made_for}, this task is {task}"
            f"{_nearest(name, list(_own(task)), task)}"
        )


def get_score(name: str, task_kind: str, classes: Sequence[Any] | NDArray[Any] | None) -> Score:
    """The score for regression, binary or multiclass outputs; its direction comes with it.

    A scikit-learn scorer is maximised, as scikit-learn has it. Of several classes, `roc_auc` is
    one against the rest, averaged. Raises SpecError for a name that is unknown, or that is not for
    this kind of target (f1 of three classes).
    """
    check_score(name, "regression" if task_kind == "regression" else "classification")
    n_classes = (
        0 if task_kind == "regression" else max(2, len(classes if classes is not None else ()))
    )
    library_name = LOSSES.get(name, name)
    if name == "roc_auc" and task_kind == "multiclass":
        library_name = "roc_auc_ovr"
    scorer = get_scorer(library_name)
    if library_name == "neg_log_loss":
        # The scorer takes its labels from y, where a fold may lack one.
        scorer = make_scorer(
            log_loss,
            greater_is_better=False,
            response_method="predict_proba",
            labels=np.arange(n_classes),
        )
    sign = -1 if name in LOSSES else 1
    score = Score(
        name=name,
        direction="minimize" if sign < 0 else "maximize",
        tensor=_formula(library_name, task_kind, sign),
        _scorer=scorer,
        _sign=sign,
        _estimator=_Regressor() if task_kind == "regression" else _Classifier(n_classes),
    )
    _probe(score, task_kind, n_classes)
    return score


def _probe(score: Score, task_kind: str, n_classes: int) -> None:
    """Tries the score on made-up rows: scikit-learn alone knows which targets it takes."""
    rng = np.random.default_rng(0)
    if task_kind == "regression":
        y, outputs = np.arange(1.0, 9.0), np.arange(1.5, 9.5)[:, None]
    else:
        y = np.repeat(np.arange(n_classes), 4)
        outputs = rng.normal(size=(len(y), 1 if n_classes == 2 else n_classes))
    try:
        score.evaluate(outputs, y)
    except (SweepError, TypeError) as error:
        reason = str(error).removeprefix(f"score: {score.name} cannot be computed: ").strip()
        task = "regression" if task_kind == "regression" else "classification"
        raise SpecError(
            f"score: {score.name} does not fit {task_kind} targets ({reason.rstrip('.')}). "
            f"Scores that do: {', '.join(_own(task))}."
        ) from None


def _own(task: str) -> tuple[str, ...]:
    return REGRESSION if task == "regression" else CLASSIFICATION


def _task_of(name: str) -> str | None:
    if name in REGRESSION or name in CLASSIFICATION:
        return "regression" if name in REGRESSION else "classification"
    function = getattr(get_scorer(name), "_score_func", None)
    module = getattr(function, "__module__", "")
    if module.endswith("_regression"):
        return "regression"
    return "classification" if module.startswith("sklearn.") else None


def _nearest(name: str, known: list[str], task: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f".{hint} Allowed: {', '.join(_own(task))}, or a scikit-learn scorer for {task}."


def _formula(library_name: str, task_kind: str, sign: int) -> TensorScore | None:
    measure = FORMULAS.get(library_name)
    if measure is None:
        return None
    # A formula is of the loss or gain itself; scikit-learn's neg_ names are minus it.
    factor = sign * (-1 if library_name in LOSSES.values() else 1)
    worst = math.inf if sign < 0 else -math.inf

    def score(outputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
        value = factor * measure(task_kind, outputs, y, w)
        finite = (torch.isfinite(outputs).all(dim=1) | (w == 0)).all()
        return torch.where(finite, value, torch.full_like(value, worst))

    return score
