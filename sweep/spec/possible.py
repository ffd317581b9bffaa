"""What a study may not ask for at once: rules that look at several keys together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sweep.spec.exact import EXACT, check_exact
from sweep.spec.knobs import Choices, FloatRange, IntRange, encode_choice
from sweep.spec.setting import WITH_MOMENTUM

if TYPE_CHECKING:
    from sweep.spec.study import StudySpec


def check_possible(spec: StudySpec) -> None:
    """Raises ValueError, with what to do, for the first rule that the study breaks."""
    checks = (
        _check_lambda,
        _check_optimizer,
        _check_recurrence,
        _check_momentum,
        _check_decay,
        _check_columns,
        _check_grid,
        _check_rules,
        _check_enqueue,
    )
    for check in checks:
        check(spec)


def _values(knob: Any) -> list[Any]:
    return knob.choices if isinstance(knob, Choices) else [knob]


def _check_lambda(spec: StudySpec) -> None:
    penalties = [name for name in _values(spec.regularizer) if name != "none"]
    if penalties and spec.lam is None:
        raise ValueError(
            f"regularizer {penalties[0]} needs a strength: give lambda a value, "
            "or a range such as {low: 1.0e-6, high: 0.1, log: true}"
        )
    if "group_lasso" not in penalties and spec.feature_groups is not None:
        raise ValueError("feature_groups is given, but regularizer is never group_lasso")
    if spec.feature_groups is not None and spec.model.kind != "linear":
        raise ValueError(f"feature_groups needs model.kind linear, not {spec.model.kind}")


def _check_recurrence(spec: StudySpec) -> None:
    if "vanishing" in _values(spec.regularizer) and spec.model.kind != "rnn":
        raise ValueError(
            f"regularizer vanishing needs model.kind rnn, not {spec.model.kind}: it keeps the "
            "gradient's length from step to step of h' = act(W x + U h), a recurrence that no "
            "other model here has"
        )


def _check_optimizer(spec: StudySpec) -> None:
    optimizers = _values(spec.train.optimizer)
    if EXACT not in optimizers:
        if spec.train.learning_rate is None:
            raise ValueError(f"train.learning_rate is missing: {optimizers[0]} needs one, above 0")
        if spec.train.tolerance != type(spec.train).model_fields["tolerance"].default:
            raise ValueError(f"train.tolerance is given, but only optimizer {EXACT} has one")
        return
    if isinstance(spec.train.optimizer, Choices):
        raise ValueError(
            f"train.optimizer: {EXACT} may not stand among choices: it finds the optimum and takes "
            "none of the others' settings. Give it alone, and the others a study of their own"
        )
    check_exact(spec)


def _check_momentum(spec: StudySpec) -> None:
    train = spec.train
    if not set(WITH_MOMENTUM) & set(_values(train.optimizer)) and train.momentum != 0:
        raise ValueError(
            f"train.momentum is given, but optimizer {_values(train.optimizer)[0]} has its own; "
            f"momentum is for {', '.join(WITH_MOMENTUM)}"
        )
    if True in _values(train.nesterov):
        if "sgd" not in _values(train.optimizer):
            raise ValueError("train.nesterov needs optimizer sgd")
        if train.momentum == 0:
            raise ValueError("train.nesterov needs train.momentum above 0")


def _check_decay(spec: StudySpec) -> None:
    train = spec.train
    decays = train.weight_decay != 0 or "l2" in _values(spec.regularizer)
    if True in _values(train.decoupled_weight_decay) and not decays:
        raise ValueError(
            "train.decoupled_weight_decay is true, but train.weight_decay is 0 and regularizer is "
            "never l2: give one of them, or leave it out"
        )


def _check_columns(spec: StudySpec) -> None:
    kind, data = spec.fold_kind, spec.data
    arrays = not data.source.lower().endswith((".csv", ".parquet"))
    if not arrays and data.target is None:
        raise ValueError(f"data.target is missing: name the column of {data.source} to predict")
    if data.target is not None and data.source.startswith(("sklearn:", "python:")):
        raise ValueError(
            f"data.target names a column of a table, but {data.source} brings its own target; "
            "leave it out"
        )
    if "stratified" in kind and spec.task == "regression":
        raise ValueError(f"cross_validation.kind {kind} needs task classification; use kfold")
    if kind == "group" and data.groups is None and not arrays:
        raise ValueError("cross_validation.kind group needs data.groups, the column of the groups")
    if kind not in ("group", "column") and data.groups is not None:
        raise ValueError(
            f"data.groups needs cross_validation.kind group, not {kind}, which would not keep the "
            "groups together. To leave a column out, use data.drop"
        )
    if kind == "column" and data.fold_column is None and not arrays:
        raise ValueError("cross_validation.kind column needs data.fold_column")
    if kind != "column" and data.fold_column is not None:
        raise ValueError("data.fold_column needs cross_validation.kind column")


def _check_grid(spec: StudySpec) -> None:
    if spec.sampler != "grid":
        return
    for name, knob in spec.space().items():
        if isinstance(knob, FloatRange) and knob.step is None:
            raise ValueError(
                f"{name} is a range of real numbers, which sampler grid cannot list: "
                "give it a step or choices, or use sampler tpe or qmc"
            )
        if isinstance(knob, IntRange) and knob.log:
            raise ValueError(f"{name} has log: sampler grid needs a step or choices")


def _check_rules(spec: StudySpec) -> None:
    rules = spec.divergence
    growing = (rules.loss_growth, rules.gradient_growth)
    if growing == (None, None) and rules.patience != type(rules)().patience:
        raise ValueError(
            f"divergence.patience {rules.patience} has nothing to wait for: loss_growth and "
            "gradient_growth are both null; leave it out, or give one of them"
        )


def _check_enqueue(spec: StudySpec) -> None:
    space = spec.space()
    for i, trial in enumerate(spec.enqueue):
        for name, value in trial.items():
            knob = space.get(name)
            if knob is None:
                raise ValueError(
                    f"enqueue[{i}].{name} does not vary in this study. "
                    f"Knobs that vary: {', '.join(space) or 'none'}"
                )
            if isinstance(knob, Choices):
                inside = encode_choice(value) in [encode_choice(c) for c in knob.choices]
            else:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                inside = number and knob.low <= value <= knob.high
                if isinstance(knob, IntRange):
                    inside = inside and isinstance(value, int)
            if not inside:
                raise ValueError(f"enqueue[{i}].{name}: {value!r} is outside what {name} may be")
