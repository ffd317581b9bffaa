"""The knobs of a study file as Optuna's distributions."""

from __future__ import annotations

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sweep.spec import Choices, FloatRange, StudySpec, encode_choice


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Name in the database -> distribution, for every knob that varies."""
    space: dict[str, BaseDistribution] = {}
    for name, knob in spec.space().items():
        if isinstance(knob, Choices):
            space[name] = CategoricalDistribution([encode_choice(c) for c in knob.choices])
        elif isinstance(knob, FloatRange):
            space[name] = FloatDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
        else:
            space[name] = IntDistribution(knob.low, knob.high, log=knob.log, step=knob.step)
    return space
