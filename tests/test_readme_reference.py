"""The README's tables of names: every key, default, column, attribute, reason and option is there,
and none is there that does not exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import sweep
from sweep.insight.selection import SIGNIFICANT
from sweep.problem.sources import BUNDLED, PARTS
from sweep.problem.tables import MAX_LEVELS
from sweep.search.pruning import PRUNERS
from sweep.search.sampler import SAMPLERS
from sweep.spec import models
from sweep.spec.exact import MOST_ITERATIONS
from sweep.spec.setting import EarlyStopping, StepSchedule
from sweep.spec.study import (
    BuiltInRegularizer,
    DataSpec,
    DivergenceSpec,
    FoldsSpec,
    Optimizer,
    StudySpec,
    TrainSpec,
)
from sweep.store.claims import LEASE_SECONDS, MAX_ATTEMPTS
from sweep.store.connection import RESTART_SECONDS
from sweep.store.views import HEAD, TAIL
from sweep.training.clipping import HISTORY
from sweep.training.divergence import (
    ABOVE_FIRST,
    BELOW_FIRST,
    RECORD,
    SPIKE,
    STRANDED_GROWTH,
    STRANDED_STEPS,
    Reason,
)
from sweep.training.engines import MAX_SLOTS, MAX_SLOTS_ON_DEVICE
from sweep.training.lanes_compile import WORTH_SECONDS
from sweep.training.member import Failure
from sweep.training.memory import SHARE
from tests.command_lines import ROOT, command_group

README = (ROOT / "README.md").read_text("utf-8")
PARTS_OF_A_STUDY: dict[str, type[BaseModel]] = {
    "": StudySpec,
    "data.": DataSpec,
    "train.": TrainSpec,
    "train.schedule.": StepSchedule,
    "train.early_stopping.": EarlyStopping,
    "cross_validation.": FoldsSpec,
    "divergence.": DivergenceSpec,
}
OPTIONAL_PARTS = ("train.schedule", "train.early_stopping")
MODELS = {
    "linear": models.LinearModel,
    "mlp": models.MLPModel,
    "cnn": models.CNNModel,
    "rnn": models.RNNModel,
    "gru": models.GatedModel,
    "lstm": models.GatedModel,
}


def section(title: str) -> str:
    """What stands under a heading, its subsections included."""
    # A comment in a block of code is no heading: blocks are blanked out, every place kept.
    prose = re.sub(r"^```.*?^```$", lambda m: " " * len(m[0]), README, flags=re.M | re.S)
    level = re.search(rf"^(#+) {re.escape(title)}$", prose, re.MULTILINE)
    assert level is not None, title
    end = re.compile(rf"^#{{1,{len(level[1])}}} ", re.MULTILINE).search(prose, level.end())
    return README[level.end() : end.start() if end else len(README)]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headers included."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def code(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    return default if isinstance(default, str) else json.dumps(default)


def keys_with_defaults() -> Iterator[tuple[str, str]]:
    for prefix, part in PARTS_OF_A_STUDY.items():
        for name, field in part.model_fields.items():
            default = field.get_default(call_default_factory=True)
            key = prefix + (field.alias or name)
            has_rows_of_its_own = f"{key}." in PARTS_OF_A_STUDY and default is not None
            # A mapping of any other kind than step is refused.
            if key != "train.schedule.kind" and (key in OPTIONAL_PARTS or not has_rows_of_its_own):
                yield key, shown(default)


def test_every_key_of_a_study_file_is_in_the_table_with_its_default() -> None:
    table = {row[0].strip("`"): row[1] for row in rows(section("Every key"))[1:]}
    assert table == dict(keys_with_defaults())


def test_the_word_required_is_used_of_keys_that_are() -> None:
    required = {key for key, default in keys_with_defaults() if default == "required"}
    always = {"study", "data.source", "task", "model"}
    assert required == {*always, "train.schedule.every"}


def test_every_key_of_a_built_in_model_is_in_the_table_with_its_default() -> None:
    table = {name: row[1] for row in rows(section("Models")) for name in code(row[0])}
    assert set(models.BUILT_IN) == set(MODELS) <= set(table)
    for kind, model in MODELS.items():
        expected = {
            f"{name}: {shown(field.get_default(call_default_factory=True))}"
            for name, field in model.model_fields.items()
            if name != "kind"
        }
        assert code(table[kind]) == expected, kind


def test_the_words_that_a_model_knob_takes_are_listed() -> None:
    text = section("Models")
    for word in (*get_args(models.Activation), *get_args(models.Normalization)):
        assert word in text
    for word in get_args(get_args(models.Init)[0]):
        assert word in text


def test_every_regularizer_and_optimizer_is_explained() -> None:
    text = section("Regularizers")
    assert set(get_args(BuiltInRegularizer)) <= {n for row in rows(text) for n in code(row[0])}
    steps = {name for row in rows(text) for name in row[0].split(", ")}
    assert set(get_args(Optimizer)) <= steps


def test_every_kind_of_fold_sampler_pruner_and_source_is_listed() -> None:
    (literal, _) = get_args(FoldsSpec.model_fields["kind"].annotation)
    assert set(get_args(literal)) <= code(section("Folds"))
    assert set(SAMPLERS) <= code(section("Samplers and pruners"))
    assert set(PRUNERS) - {"none"} <= code(section("Samplers and pruners"))
    assert set(BUNDLED) | set(PARTS) - {"X"} <= code(section("Data"))


def test_every_reason_and_every_field_of_a_failure_is_explained() -> None:
    text = section("Divergence")
    rules = {name for row in rows(text) for name in code(row[0])}
    assert {reason.value for reason in Reason} <= rules
    failure = Failure("divergence", "loss_explosion", 0, 0, 0, "")
    assert set(failure.as_json()) <= code(text)


def test_numbers_in_the_text_are_those_in_the_code() -> None:
    assert f"once {SPIKE:,.0f} times above" in README
    assert f"rises to {STRANDED_GROWTH:,.0f} times max(1, its first value)" in README
    assert f"for {STRANDED_STEPS} updates in a row" in README
    assert f"between {BELOW_FIRST} and {ABOVE_FIRST:g} times" in README
    assert f"the last {RECORD} steps" in README
    assert f"p < {SIGNIFICANT}" in README
    assert f"of the last {HISTORY:,} updates at most" in README
    assert f"more than {MAX_LEVELS:,} different texts" in README
    assert f"at least {WORTH_SECONDS:.0f} seconds of eager training" in README
    assert f"noticed after {LEASE_SECONDS:.0f} seconds" in README
    assert f"at most {MAX_SLOTS}, and no more than half of the free memory" in README
    assert f"train at once, at most {MAX_SLOTS_ON_DEVICE:,}, as many as half" in README
    assert SHARE == 0.5
    assert f"{MOST_ITERATIONS:,} iterations" in README
    assert f"tried again for {RESTART_SECONDS:.0f} seconds" in README
    assert MAX_ATTEMPTS == 3 and "lost three workers" in README


def test_every_option_of_every_command_is_named() -> None:
    known = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(code(section("Commands"))))
    for name, command in command_group().commands.items():
        for parameter in command.params:
            if parameter.opts[0].startswith("-") and not getattr(parameter, "hidden", False):
                assert set(parameter.opts) & set(known), f"{name} {parameter.opts}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[sweep.Result, sweep.Database]:
    """The README's own module and study file, written where they say and run."""
    folder = tmp_path_factory.mktemp("own")
    text = section("Your own model, regularizer and data")
    files = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", text, re.M | re.S)
    assert [name for name, _ in files] == ["mine.py", "mine.yaml"]
    for name, content in files:
        (folder / name).write_text(content, "utf-8")
    url = f"sqlite:///{folder / 'sweep.db'}"
    return sweep.run(folder / "mine.yaml", storage=url), sweep.open(url)


def test_the_example_of_ones_own_code_runs(own: tuple[sweep.Result, sweep.Database]) -> None:
    trials = own[0].trials()
    assert len(trials) == 6 and set(trials["state"]) == {"COMPLETE"}
    assert set(trials["regularizer"]) == {"l2", "python:mine:NonNegative"}


def test_the_views_and_attributes_of_the_database_are_those_listed(
    own: tuple[sweep.Result, sweep.Database],
) -> None:
    database, text = own[1], section("What is stored")
    table = [row for row in rows(text) if len(row) == 3 and code(row[0])]
    columns = {next(iter(code(row[0]))): code(row[2]) for row in table}
    for view in ("sweep_studies", "sweep_folds", "sweep_failures"):
        assert columns[view] == set(database.sql(f"SELECT * FROM {view} LIMIT 0").columns)
    assert columns["sweep_trials"] == {*HEAD, *TAIL}
    for table in ("trial_user_attributes", "study_user_attributes"):
        keys = database.sql(f"SELECT DISTINCT key FROM {table} WHERE key NOT LIKE 'dashboard:%'")
        stored = set(keys["key"])
        assert stored and stored <= code(text), table


def test_every_study_that_comes_along_is_listed() -> None:
    listed = {name for name in code(section("What a run prints")) if name.startswith("studies/")}
    assert listed == {f"studies/{path.name}" for path in Path(ROOT / "studies").glob("*.yaml")}
