"""The study file as typed models, and what each trial makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from sweep.spec.exact import EXACT, MOST_ITERATIONS
from sweep.spec.knobs import (
    Choices,
    Count,
    Distribution,
    FloatKnob,
    FloatRange,
    Fraction,
    Full,
    IntKnob,
    IntRange,
    Knob,
    NonNegative,
    Percent,
    Positive,
    Strict,
    Switch,
    encode_choice,
)
from sweep.spec.models import ModelSpec
from sweep.spec.possible import check_possible
from sweep.spec.setting import EarlyStopping, Setting, StepSchedule, resolve

Task = Literal["regression", "classification"]
Optimizer = Literal["sgd", "normalized_sgd", "adam", "adamw", "rmsprop", "fista"]
Schedule = Literal["constant", "cosine", "step"] | StepSchedule
Sampler = Literal["tpe", "gp", "cmaes", "random", "grid", "qmc"]
Pruner = Literal["none", "median", "hyperband", "wilcoxon"]
PythonName = Annotated[str, Field(pattern=r"^python:[\w.]+:\w+$")]
BuiltInRegularizer = Literal[
    "none", "l1", "l2", "elastic_net", "group_lasso", "spectral", "orthogonal", "vanishing"
]
Regularizer = BuiltInRegularizer | PythonName

RESERVED = frozenset(
    [
        "study",
        "trial",
        "state",
        "score",
        "score_se",
        "failure_kind",
        "failure_reason",
        "started",
        "seconds",
    ]
)


class DataSpec(Strict):
    """Where the rows come from, and which columns mean what."""

    source: Annotated[str, Field(min_length=1)]
    target: str | None = None
    features: list[str] | None = None
    drop: list[str] = Field(default_factory=list)
    groups: str | None = None
    weights: str | None = None
    fold_column: str | None = None
    shape: list[Count] | None = None
    standardize: Literal["fold", "all", "none"] = "fold"
    standardize_target: Literal["fold", "all", "none"] = "none"


class TrainSpec(Strict):
    """How one model is trained."""

    optimizer: Knob[Optimizer] = "sgd"
    learning_rate: FloatKnob[Positive, Positive] | None = None
    momentum: FloatKnob[Fraction, Fraction] = 0.0
    nesterov: Switch = False
    weight_decay: FloatKnob[NonNegative, NonNegative] = 0.0
    decoupled_weight_decay: Switch = False
    clip_norm: FloatKnob[Positive | None, Positive] = None
    clip_percentile: FloatKnob[Percent | None, Percent] = None
    clip_layer: FloatKnob[Positive | None, Positive] = None
    clip_value: FloatKnob[Positive | None, Positive] = None
    batch_size: IntKnob[Count | Full, Count] = 64
    epochs: IntKnob[Count, Count] = 20
    schedule: Knob[Schedule] = "constant"
    warmup: FloatKnob[NonNegative, NonNegative] = 0.0
    early_stopping: EarlyStopping | None = None
    l1: Knob[Literal["proximal", "subgradient"]] = "proximal"
    dtype: Literal["float32", "float64"] = "float32"
    tolerance: Positive = 1e-8

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_fista(cls, given: Any) -> Any:
        """It looks at all rows in every iteration, and ends by itself."""
        if isinstance(given, Mapping) and given.get("optimizer") == EXACT:
            return {"batch_size": "full", "epochs": MOST_ITERATIONS, **given}
        return given


class FoldsSpec(Strict):
    """scikit-learn's splitters; `column` takes the folds from `data.fold_column`."""

    kind: (
        Literal[
            "kfold",
            "stratified",
            "group",
            "time_series",
            "repeated_kfold",
            "repeated_stratified",
            "column",
        ]
        | None
    ) = None
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Count = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None


class DivergenceSpec(Strict):
    """When training counts as exploded; null turns a growth rule off (non-finite never is off).

    A value (loss, or norm of the unclipped gradient) explodes when it stays above
    growth * max(1, its value at the first step) for `patience` steps in a row, or is once a
    thousand times above it. A loss that explodes and then stays at its first height has too.
    """

    loss_growth: Annotated[float, Field(gt=1)] | None = 1e6
    gradient_growth: Annotated[float, Field(gt=1)] | None = 1e6
    patience: Count = 10


class StudySpec(Strict):
    """A study file. Every knob is a value or a distribution."""

    study: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
    data: DataSpec
    task: Task
    model: ModelSpec
    regularizer: Knob[Regularizer] = "none"
    lam: FloatKnob[NonNegative, NonNegative] | None = Field(default=None, alias="lambda")
    l1_ratio: FloatKnob[
        Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]
    ] = 0.5
    penalize_bias: bool = False
    penalize: list[str] = Field(default_factory=lambda: ["*"], min_length=1)
    feature_groups: dict[str, list[str]] | None = None
    train: TrainSpec
    cross_validation: FoldsSpec = Field(default_factory=FoldsSpec)
    score: str | None = None
    scores: list[str] = Field(default_factory=list)
    sampler: Sampler = "tpe"
    pruner: Pruner = "none"
    divergence: DivergenceSpec = Field(default_factory=DivergenceSpec)
    enqueue: list[dict[str, Any]] = Field(default_factory=list)
    trials: Count = 100
    concurrency: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _possible(self) -> StudySpec:
        check_possible(self)
        return self

    @property
    def fold_kind(self) -> str:
        if self.cross_validation.kind is not None:
            return self.cross_validation.kind
        if self.data.groups is not None:
            return "group"
        return "stratified" if self.task == "classification" else "kfold"

    @property
    def fold_seed(self) -> int:
        given = self.cross_validation.seed
        return self.seed if given is None else given

    @property
    def score_name(self) -> str:
        return self.score or ("log_loss" if self.task == "classification" else "mse")

    def knobs(self) -> dict[str, Any]:
        """Every knob by its name in the database: the last key, or the dotted path on collision."""
        paths = dict(_paths(self))
        last = [path.rsplit(".", 1)[-1] for path in paths]
        return {
            path if last.count(key) > 1 or key in RESERVED else key: knob
            for key, (path, knob) in zip(last, paths.items(), strict=True)
        }

    def space(self) -> dict[str, Distribution]:
        """The knobs that vary."""
        return {
            name: knob
            for name, knob in self.knobs().items()
            if isinstance(knob, FloatRange | IntRange | Choices)
        }

    def fixed(self) -> dict[str, Any]:
        """The knobs that do not vary, as JSON values."""
        varied = self.space()
        return {
            name: knob.model_dump() if isinstance(knob, BaseModel) else knob
            for name, knob in self.knobs().items()
            if name not in varied
        }

    def setting(self, params: Mapping[str, Any]) -> Setting:
        """The trial with these parameters (as Optuna holds them), every knob a value."""
        values = self.knobs()
        for name, knob in self.space().items():
            given = params[name]
            if isinstance(knob, Choices):
                by_text = {encode_choice(choice): choice for choice in knob.choices}
                given = by_text[given]
            values[name] = given
        model_names = {name: key for name, key in _model_keys(self, values)}
        model = {key: values[name] for name, key in model_names.items()}
        rest = {
            name.rsplit(".", 1)[-1]: value
            for name, value in values.items()
            if name not in model_names
        }
        return resolve(self.model.kind, model, rest, self.train)

    def substance(self) -> dict[str, Any]:
        """What must not change when a study is continued, as JSON values."""
        free = {"trials", "concurrency", "study"}
        return self.model_dump(mode="json", by_alias=True, exclude=free)


def _paths(spec: StudySpec) -> Iterator[tuple[str, Any]]:
    yield "regularizer", spec.regularizer
    yield "lambda", spec.lam
    yield "l1_ratio", spec.l1_ratio
    for key in type(spec.model).model_fields:
        if key != "kind":
            yield f"model.{key}", getattr(spec.model, key)
    for key, value in (spec.model.model_extra or {}).items():
        yield f"model.{key}", value
    for key in TrainSpec.model_fields:
        if key not in ("early_stopping", "dtype", "tolerance"):
            yield f"train.{key}", getattr(spec.train, key)


def _model_keys(spec: StudySpec, names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    keys = [k for k in type(spec.model).model_fields if k != "kind"]
    for key in [*keys, *(spec.model.model_extra or {})]:
        yield (f"model.{key}" if f"model.{key}" in names else key), key
