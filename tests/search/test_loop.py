"""The loop: exactly so many trials, the same ones for the same seed, nothing finished lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sweep.training.engines
from sweep.errors import StudyChangedError
from sweep.search.loop import run_study
from sweep.search.pruning import PRUNERS
from sweep.search.sampler import SAMPLERS
from sweep.spec import StudyFile, load_spec
from sweep.store.storage import Store
from tests import warm

DATA = Path(__file__).parents[1] / "training"
STUDY = {
    "study": "loop",
    "data": {"source": "python:toy_data:three_classes"},
    "task": "classification",
    "model": {"kind": "mlp", "hidden": [5]},
    "regularizer": {"choices": ["none", "l2"]},
    "lambda": {"low": 1e-4, "high": 1.0, "log": True},
    "train": {
        "learning_rate": {"low": 1e-3, "high": 1e12, "log": True},
        "batch_size": 16,
        "epochs": 3,
        "dtype": "float64",
    },
    "cross_validation": {"kind": "kfold", "folds": 3},
    "sampler": "tpe",
    "trials": 20,
    "concurrency": 4,
}


def file_of(**changes):
    loaded = load_spec({**STUDY, **changes})
    return StudyFile(loaded.spec, loaded.text, DATA, loaded.name)


def stored(url, name="loop"):
    with Store.open(url) as store:
        return store.finished_since(store.study_id(name))[0]


def chosen(trials):
    return [(t.number, t.params, t.state.name) for t in trials]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'sweep.db'}"


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "grid"])
def test_every_sampler_runs_exactly_so_many_trials_and_records_the_diverged(sampler, url):
    trials = 12 if sampler == "gp" else 20
    ended = run_study(file_of(sampler=sampler), url, trials=trials)
    found = stored(url)
    assert [t.number for t in found] == list(range(trials))
    assert ended.status.done == trials and ended.status.running == 0
    for trial in found:
        if trial.state.name == "COMPLETE":
            scores = trial.user_attrs["fold_scores"]
            assert trial.value == pytest.approx(np.mean(scores))
            assert trial.user_attrs["score_se"] == pytest.approx(np.std(scores, ddof=1) / 3**0.5)
            assert len(trial.intermediate_values) == 3
            assert len(trial.user_attrs["nonzero"]) == len(trial.user_attrs["train_scores"]) == 3
        else:
            assert trial.user_attrs["failure"]["kind"] == "divergence"
    assert any(t.state.name == "FAIL" for t in found)


def test_grid_is_capped_at_its_size(url):
    changes = {
        "sampler": "grid",
        "lambda": {"choices": [0.1, 0.01, 0.001]},
        "train": {**STUDY["train"], "learning_rate": {"choices": [0.1, 0.01]}},
    }
    run_study(file_of(**changes), url)
    cells = [tuple(sorted(t.params.items())) for t in stored(url)]
    assert len(cells) == 2 * (1 + 3) == len(set(cells))


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_runs(pruner, url):
    rates = {"low": 1e-5, "high": 1.0, "log": True}
    changes = {
        "pruner": pruner,
        "concurrency": 3,
        "train": {**STUDY["train"], "epochs": 4, "learning_rate": rates},
    }
    run_study(file_of(**changes), url, trials=24)
    found = stored(url)
    assert len(found) == 24
    pruned = [t for t in found if t.state.name == "PRUNED"]
    if pruner != "wilcoxon":
        assert bool(pruned) == (pruner != "none")
    for trial in pruned:
        assert "fold_scores" not in trial.user_attrs and trial.intermediate_values


def test_the_same_seed_gives_the_same_trials_whatever_the_slots_and_the_engine(
    tmp_path, monkeypatch
):
    """The choice of trial k sees exactly the results of trials up to k - concurrency."""
    runs = {}
    for name, engine, slots in (("a", "lanes", 320), ("b", "lanes", 5), ("c", "reference", 1)):
        monkeypatch.setattr(sweep.training.engines, "MAX_SLOTS", slots)
        url = f"sqlite:///{tmp_path / name}.db"
        run_study(file_of(pruner="median"), url, engine=engine)
        runs[name] = chosen(stored(url))
    assert runs["a"] == runs["b"] == runs["c"]


def test_a_continued_study_is_the_uninterrupted_one(tmp_path):
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("whole", "parts")]
    run_study(file_of(), urls[0])
    for trials in (7, 8, 20):
        ended = run_study(file_of(), urls[1], trials=trials)
        assert ended.status.done == trials
    assert chosen(stored(urls[0])) == chosen(stored(urls[1]))
    assert run_study(file_of(), urls[1]).status.done == 20


def test_timeout_gives_running_trials_back_and_the_next_runs_finish_as_many_as_asked(url):
    slow = file_of(train={**STUDY["train"], "epochs": 160, "learning_rate": 0.01})

    def counts():
        with Store.open(url) as store:
            found = store.counts(store.study_id("loop"))
        return {state: n for state, n in found.items() if n}

    assert run_study(slow, url, timeout=0.3).status.done == 0
    assert counts() == {"WAITING": 4}
    chosen_before = None
    for trials, expected in ((2, {"COMPLETE": 2, "WAITING": 2}), (1, None), (5, {"COMPLETE": 5})):
        before = counts()
        run_study(slow, url, trials=trials)
        assert counts() == (expected or before)
        finished = chosen(stored(url))
        assert chosen_before is None or finished[: len(chosen_before)] == chosen_before
        chosen_before = finished
    assert [number for number, _, _ in chosen_before] == list(range(5))


def test_a_file_that_changed_in_substance_is_refused_with_the_difference(url):
    run_study(file_of(), url, trials=2)
    with pytest.raises(StudyChangedError, match=r"train\.epochs: 3 -> 4"):
        run_study(file_of(train={**STUDY["train"], "epochs": 4}), url)
    ended = run_study(file_of(train={**STUDY["train"], "epochs": 4}), url, trials=2, fresh=True)
    assert ended.study == "loop-2" and len(stored(url, "loop-2")) == 2


def test_enqueued_trials_come_first(url):
    first = {"learning_rate": 0.05, "regularizer": "l2", "lambda": 0.1}
    run_study(file_of(enqueue=[first, {"regularizer": "none"}]), url, trials=4)
    trials = stored(url)
    assert trials[0].params == first
    assert trials[1].params["regularizer"] == "none"


WORKER = """
import json, sys
from pathlib import Path
from sweep.spec import StudyFile, load_spec
from sweep.search.loop import run_study
loaded = load_spec(json.loads(sys.argv[1]))
run_study(StudyFile(loaded.spec, loaded.text, Path(sys.argv[2]), loaded.name), sys.argv[3])
"""


def test_processes_share_a_study_exactly(database_url):
    """The same study started three times at once: its trials are trained once each."""
    study = json.dumps({**STUDY, "trials": 24, "train": {**STUDY["train"], "epochs": 4}})
    command = [sys.executable, "-c", WORKER, study, str(DATA), database_url]
    workers = [warm.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [w.returncode for w in workers] == [0, 0, 0], errors
    trials = stored(database_url)
    assert [t.number for t in trials] == list(range(24))
    assert len({json.dumps(t.params, sort_keys=True) for t in trials}) == 24
