"""What may stand beside `train.optimizer: fista`."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.errors import SpecError
from sweep.spec import load_spec
from sweep.spec.exact import MOST_ITERATIONS

STUDY: dict[str, Any] = {
    "study": "exact",
    "data": {"source": "sklearn:diabetes"},
    "task": "regression",
    "model": {"kind": "linear"},
    "train": {"optimizer": "fista"},
}
REFUSALS = {
    "train.learning_rate=0.1": "leave out train.learning_rate",
    "train.momentum=0.9": "leave out train.momentum",
    "train.nesterov=true": "leave out train.nesterov",
    "train.weight_decay=0.1": "leave out train.weight_decay",
    "train.clip_norm={choices: [null, 1.0]}": "leave out train.clip_norm",
    "train.clip_value=1.0": "leave out train.clip_value",
    "train.schedule=cosine": "leave out train.schedule",
    "train.warmup=1.0": "leave out train.warmup",
    "train.early_stopping={}": "leave out train.early_stopping",
    "train.l1=subgradient": "leave out train.l1",
    "train.batch_size=64": "leave train.batch_size out, or write full",
    "train.epochs={low: 5, high: 10}": "give one number, or leave it out",
    "train.tolerance=0": "above 0",
    "train.tolerance={low: 1e-8, high: 1e-3}": "a number",
    "train.optimizer={choices: [sgd, fista]}": "may not stand among choices",
    "train.optimizer=fist": "Did you mean fista?",
    "train.optimizer=sgd": "train.learning_rate is missing",
    "train={optimizer: sgd, learning_rate: 0.1, tolerance: 0.1}": "only optimizer fista has one",
    "model.kind=mlp": "needs model.kind linear, not mlp",
    "model.init=0.5": "the optimum from any start",
    "pruner=median": "use pruner wilcoxon or none",
}


@pytest.mark.parametrize("override", REFUSALS)
def test_what_is_impossible_is_refused(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(STUDY, [override])
    assert REFUSALS[override] in str(caught.value)


def test_everything_given_in_vain_is_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"leave out train\.learning_rate, train\.momentum\."):
        load_spec(STUDY, ["train.learning_rate=0.1", "train.momentum=0.9"])


def test_it_takes_all_rows_and_as_many_iterations_as_it_needs() -> None:
    train = load_spec(STUDY).spec.train
    assert (train.batch_size, train.epochs) == ("full", MOST_ITERATIONS)
    assert load_spec(STUDY, ["train.epochs=50"]).spec.train.epochs == 50


def test_a_study_read_back_is_the_same() -> None:
    spec = load_spec(STUDY).spec
    assert load_spec(spec.model_dump(mode="json", by_alias=True)).spec == spec
