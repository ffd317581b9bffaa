"""Study files: what is read, what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sweep.errors import SpecError
from sweep.spec import Choices, FloatRange, IntRange, load_spec
from sweep.spec.load import MAX_BYTES, parse_yaml

STUDIES = sorted((Path(__file__).resolve().parents[1] / "studies").glob("*.yaml"))
BASE: dict[str, Any] = {
    "study": "digits",
    "data": {"source": "sklearn:digits"},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [64, 64]},
    "regularizer": {"choices": ["none", "l1", "l2"]},
    "lambda": {"low": 1e-6, "high": 0.1, "log": True},
    "train": {"learning_rate": {"low": 1e-3, "high": 3.0, "log": True}},
}


def refusal(*overrides: str, **changes: Any) -> str:
    raw = {**copy.deepcopy(BASE), **changes}
    with pytest.raises(SpecError) as caught:
        load_spec(raw, overrides)
    return str(caught.value).removeprefix("study: ")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_here_is_read(path: Path) -> None:
    file = load_spec(path)
    assert file.directory == path.parent
    assert file.text == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+7", 7),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ("'1e-6'", "1e-6"),
        ("0x1F", "0x1F"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """Of which the decimal forms are read; the others stay text and are refused by their key."""
    found = parse_yaml(f"key: {text}", "file")["key"]
    assert found == value and type(found) is type(value)


def test_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(BASE))
    assert load_spec(path).spec == load_spec(BASE).spec


def test_knobs_are_values_or_distributions() -> None:
    changes = ["train.epochs={low: 5, high: 20, step: 5}", "train.clip_norm={choices: [null, 1.0]}"]
    spec = load_spec(BASE, changes).spec
    space = spec.space()
    assert isinstance(space["lambda"], FloatRange) and space["lambda"].log
    assert isinstance(space["epochs"], IntRange) and space["epochs"].step == 5
    assert isinstance(space["clip_norm"], Choices) and space["clip_norm"].choices == [None, 1.0]
    assert spec.fixed()["momentum"] == 0.0
    assert not set(space) & set(spec.fixed())


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=5", "train.epochs", 5),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.clip_norm=null", "train.clip_norm", None),
        ("train.clip_norm=", "train.clip_norm", None),
        ("model.hidden=[8, 8]", "model.hidden", [8, 8]),
        ("study=a=b", "study", "a=b"),
        (" train.momentum =0.5", "train.momentum", 0.5),
        ("cross_validation.folds=3", "cross_validation.folds", 3),
    ],
)
def test_set_changes_one_key(override: str, path: str, value: object) -> None:
    found: Any = load_spec(BASE, [override]).spec
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value


def test_set_leaves_the_mapping_it_was_given_alone() -> None:
    raw = copy.deepcopy(BASE)
    load_spec(raw, ["train.epochs=3", "lambda=0.5"])
    assert raw == BASE


def test_a_mapping_may_hold_numpy_scalars_and_paths() -> None:
    raw = {
        **BASE,
        "trials": np.int64(3),
        "data": {"source": Path("a.csv"), "target": "y"},
        "lambda": np.float32(0.5),
    }
    spec = load_spec(raw).spec
    assert (spec.trials, spec.data.source, spec.lam) == (3, "a.csv", 0.5)


# What was given -> what the sentence must hold: key path, value, what is allowed, nearest name.
REFUSALS = {
    "lamda=1": ["lamda: unknown key", "Did you mean lambda?", "Allowed: study, data"],
    "lam=1": ["lam: unknown key", "Did you mean lambda?"],
    "lambda=-1": ["lambda: -1 was given", "at least 0"],
    "lambda=abc": ["lambda: 'abc' was given", "a number"],
    "lambda=true": ["lambda: true was given", "a number"],
    "lambda=.inf": ["lambda: inf", "finite"],
    "lambda=": ["regularizer l1 needs a strength"],
    "lambda={low: 1}": ["lambda.high: missing", "low, high, log, step"],
    "lambda={low: 1, high: 0.1}": ["lambda: low 1.0 is above high 0.1"],
    "lambda={low: 0, high: 1, log: true}": ["log needs low > 0"],
    "lambda={low: 0.1, high: 1, step: 0.4}": ["step 0.4 does not divide"],
    "lambda={low: 0.1, high: 1, lag: true}": ["lambda.lag: unknown key", "Did you mean log?"],
    "lambda={choices: []}": ["lambda.choices: []", "at least 1"],
    "lambda={choices: [1, 1.0]}": ["1.0 is listed twice"],
    "lambda={choices: [1, -1]}": ["lambda.choices[1]: -1", "at least 0"],
    "regularizer=L1": ["regularizer: 'L1' is unknown", "Did you mean l1?", "python:module:name"],
    "regularizer=3": ["regularizer: 3 was given", "group_lasso"],
    "regularizer={low: 1, high: 2}": ["is a range", "choices"],
    "regularizer={choices: [l1, l3]}": ["regularizer.choices[1]: 'l3' is unknown"],
    "model.kind=mpl": ["model.kind: 'mpl' is unknown", "Did you mean mlp?", "lstm"],
    "model=mlp": ["model: 'mlp'", "{kind: mlp}"],
    "model={}": ["model.kind: missing", "linear, mlp"],
    "model.widths=3": ["model.widths: unknown key", "hidden"],
    "model.hidden=0": ["model.hidden: 0 was given", "at least 1"],
    "model.hidden=[64, x]": ["model.hidden[1]: 'x'", "a whole number"],
    "model.activation=Relu": ["Did you mean relu?"],
    "model.init={normal: -1}": ["model.init.normal: -1", "above 0"],
    "train.optimizer=adm": ["train.optimizer: 'adm'", "Did you mean adam?"],
    "train.optimiser=sgd": ["train.optimiser: unknown key", "Did you mean optimizer?"],
    "train.learning_rate=": ["train.learning_rate is missing", "sgd needs one, above 0"],
    "train.epochs=2.5": ["train.epochs: 2.5", "a whole number"],
    "train.batch_size=all": ["train.batch_size: 'all'", "full"],
    "train.momentum=1": ["train.momentum: 1", "below 1"],
    "train.nesterov=true": ["nesterov needs train.momentum above 0"],
    "train.clip_percentile=101": ["train.clip_percentile: 101", "at most 100"],
    "train.clip_layer=0": ["train.clip_layer: 0", "above 0"],
    "train.clip_persentile=5": ["Did you mean clip_percentile?"],
    "train.optimizer=normalised_sgd": ["Did you mean normalized_sgd?"],
    "regularizer=spectre": ["Did you mean spectral?"],
    "regularizer=vanishing": ["vanishing needs model.kind rnn, not mlp"],
    "train.nesterov=yes": ["true or false"],
    "train.early_stopping=true": ["a mapping of keys", "patience"],
    "train=3": ["train: 3 was given", "learning_rate"],
    "data.sorce=x": ["data.sorce: unknown key", "Did you mean source?"],
    "data.source=x.csv": ["data.target is missing"],
    "data.target=y": ["data.target", "sklearn:digits brings its own target"],
    "task=regresion": ["task: 'regresion'", "Did you mean regression?"],
    "cross_validation.kind=kfolds": ["Did you mean kfold?"],
    "cross_validation.folds=1": ["cross_validation.folds: 1", "at least 2"],
    "sampler=grid": ["lambda is a range of real numbers", "grid"],
    "sampler=tpee": ["Did you mean tpe?"],
    "pruner=asha": ["pruner: 'asha' is unknown", "hyperband"],
    "trials=0": ["trials: 0", "at least 1"],
    "study=": ["study: nothing was given"],
    'study="a\\nb"': ["study: ", "one line of text"],
    "enqueue=[{lambda: 5}]": ["enqueue[0].lambda: 5 is outside"],
    "enqueue=[{lamda: 1e-3}]": ["enqueue[0].lamda does not vary", "lambda"],
    "divergence={loss_growth: 0}": ["divergence.loss_growth: 0 was given", "above 1"],
    "divergence={gradient_growth: -5}": ["divergence.gradient_growth: -5", "above 1"],
    "divergence={loss_growth: .inf}": ["divergence.loss_growth: inf"],
    "divergence={loss_growth: 1}": ["divergence.loss_growth: 1 was given", "above 1"],
    "divergence={gradient_growth: .nan}": ["divergence.gradient_growth: nan", "finite"],
    "divergence={loss_growth: true}": ["divergence.loss_growth: true", "a number"],
    "divergence={window: 10}": ["divergence.window: unknown key", "Allowed: loss_growth"],
    "divergence={reasons: [nan]}": ["divergence.reasons: unknown key", "Allowed: loss_growth"],
    "divergence=off": ["divergence: 'off'", "a mapping of keys (loss_growth"],
    "divergence={patience: 0}": ["divergence.patience: 0 was given", "at least 1"],
    "divergence={patience: 2.5}": ["divergence.patience: 2.5", "a whole number"],
    "divergence={nonfinite_los: false}": ["divergence.nonfinite_los: unknown key", "loss_growth"],
    "divergence={loss_explosion: 10}": ["divergence.loss_explosion: unknown key", "Allowed:"],
    "divergence={loss_growth: null, gradient_growth: null, patience: 5}": ["nothing to wait for"],
    "feature_groups={a: [b]}": ["never group_lasso"],
    "=3": ["key.path=value"],
    "x": ["key.path=value"],
    "trials=[": ["--set trials", "line 1"],
    "train=*a": ["aliases"],
}


@pytest.mark.parametrize("override", REFUSALS)
def test_a_refusal_names_key_value_and_what_is_allowed(override: str) -> None:
    sentence = refusal(override)
    for words in REFUSALS[override]:
        assert words in sentence, sentence
    assert "\n" not in sentence and "pydantic" not in sentence
    assert re.search(r"[.?]( \(and \d+ more\))?$", sentence), sentence


def test_task_and_folds_must_agree() -> None:
    sentence = refusal("task=regression", "cross_validation.kind=stratified")
    assert "stratified needs task classification; use kfold" in sentence


def test_decay_that_is_not_there_cannot_be_decoupled() -> None:
    sentence = refusal("train.decoupled_weight_decay=true", "regularizer=l1")
    assert "train.weight_decay is 0 and regularizer is never l2" in sentence
    for given in ("train.weight_decay=0.1", "regularizer=l2"):
        load_spec(BASE, ["train.decoupled_weight_decay=true", given])


def test_momentum_is_refused_where_an_optimizer_has_its_own() -> None:
    sentence = refusal("train.optimizer=adam", "train.momentum=0.9")
    assert "adam has its own; momentum is for sgd, normalized_sgd, rmsprop" in sentence
    load_spec(BASE, ["train.optimizer=normalized_sgd", "train.momentum=0.9"])


def test_groups_are_kept_together_or_it_is_refused() -> None:
    data = {"source": "t.csv", "target": "y", "groups": "g"}
    assert load_spec({**BASE, "data": data, "cross_validation": {}}).spec.fold_kind == "group"
    sentence = refusal(data=data, cross_validation={"kind": "kfold"})
    assert "data.groups needs cross_validation.kind group, not kfold" in sentence


@pytest.mark.parametrize("key", ["study", "data", "task", "model", "train"])
def test_what_every_study_needs_is_missed(key: str) -> None:
    raw = {name: value for name, value in BASE.items() if name != key}
    with pytest.raises(SpecError, match=f"{key}: missing"):
        load_spec(raw)


def test_several_mistakes_are_counted() -> None:
    assert refusal("trials=0", "seed=-1", "sampler=x").endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this is empty"),
        (b"[1, 2]", "this is a list"),
        (b"hello", "this is text"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: [1", "line 1"),
        (b"a: 1\na: 2\n", "'a' appears twice"),
        (b"1: 2\n", "the key 1 is not text"),
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"a: !!python/object/apply:os.system ['true']", "not readable as YAML"),
        (b"--- 1\n--- 2\n", "not readable as YAML"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
        (b"a: " + b"9" * 5000, "not readable as YAML"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_is_no_study_file_is_said(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("x")
    with pytest.raises(SpecError, match=r"Did you mean .*digits\.yaml\?"):
        load_spec(tmp_path / "digit.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match="No study file"):
        load_spec(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(SpecError, match="Cannot read"):
        load_spec("a\0b")


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, b"bytes"], ids=lambda v: type(v).__name__)
def test_a_mapping_of_something_else_is_refused(value: object) -> None:
    with pytest.raises(SpecError, match=f"no {type(value).__name__}"):
        load_spec({**BASE, "trials": value})


def test_what_was_resolved_can_be_loaded_again() -> None:
    """A study stores its substance; validating that gives the same study."""
    for path in STUDIES:
        spec = load_spec(path).spec
        again = load_spec(
            {
                **spec.substance(),
                "study": spec.study,
                "trials": spec.trials,
                "concurrency": spec.concurrency,
            }
        ).spec
        assert again == spec, path.stem


def test_the_text_of_a_mapping_is_a_study_file() -> None:
    file = load_spec(BASE)
    assert yaml.safe_load(file.text)["study"] == "digits"


def test_a_window_longer_than_the_longest_training_is_refused_with_the_data_known() -> None:
    """Digits in 5 folds has 1,438 rows to train on at most: 1,438 / 64 batches, rounded up."""
    from sweep.training.preflight import make_experiment

    changes = ["train.epochs=2", "train.batch_size=64", "cross_validation.folds=5"]
    make_experiment(load_spec(BASE, [*changes, "divergence.patience=46"]))
    with pytest.raises(SpecError, match=r"divergence.patience: 47 was given.* has 46 updates"):
        make_experiment(load_spec(BASE, [*changes, "divergence.patience=47"]))
