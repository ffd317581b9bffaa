"""A study in the database: made from a study file, or continued if the file still asks the same."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import RequestError, StudyChangedError
from sweep.problem.curvature import curvature
from sweep.problem.prepare import Problem
from sweep.search.environment import MAX_RUNS, package_versions, this_run
from sweep.search.space import distributions
from sweep.spec import StudyFile, StudySpec
from sweep.store.provenance import differences, spec_differences
from sweep.store.storage import Store


@dataclass(frozen=True)
class OpenStudy:
    """A study to add trials to."""

    study_id: int
    name: str
    resumed: bool


def open_study(
    store: Store, file: StudyFile, problem: Problem, direction: str, *, fresh: bool
) -> OpenStudy:
    """The file's study, created if it is new.

    Raises StudyChangedError, with the difference, where the stored study was made from a file or
    data that differ in substance. `fresh`: a new name is taken instead, nothing is deleted.
    """
    name = file.spec.study
    known = set(store.studies())
    if fresh and name in known:
        name = next(f"{name}-{i}" for i in range(2, 10**6) if f"{name}-{i}" not in known)
    attrs = attributes(file, problem)
    if name in known:
        study_id = store.study_id(name)
        check_unchanged(name, store.study_attrs(study_id), attrs)
        return OpenStudy(study_id, name, resumed=True)
    attrs |= _known_beforehand(file.spec, problem)
    study_id = store.create_study(name, direction, attrs)
    # Another process may have been first, with another file.
    check_unchanged(name, store.study_attrs(study_id), attrs)
    return OpenStudy(study_id, name, resumed=False)


def attributes(file: StudyFile, problem: Problem) -> dict[str, Any]:
    """What is stored of a study: enough to say what was done, and to do it again."""
    spec = file.spec
    return {
        "spec": {**spec.substance(), "trials": spec.trials, "concurrency": spec.concurrency},
        "file": file.text,
        "directory": str(file.directory),
        "command": _command(file),
        "knobs": {"fixed": _json(spec.fixed()), "varied": sorted(distributions(spec))},
        "data": describe_data(problem),
        "score": spec.score_name,
        "versions": package_versions(),
    }


def _known_beforehand(spec: StudySpec, problem: Problem) -> dict[str, Any]:
    """Of least squares the curvature, from which the learning rates that explode follow."""
    if spec.model.kind != "linear" or problem.kind != "regression":
        return {}
    found = curvature(problem)
    return {} if found is None else {"curvature": found}


def _command(file: StudyFile) -> str | None:
    """The command line that asks the same; None for a study that was given in Python."""
    path = file.directory / Path(file.name).name
    if not path.is_file():
        return None
    overrides = [word for override in file.overrides for word in ("--set", override)]
    return shlex.join(["sweep", "run", str(path), *overrides])


def record_run(store: Store, study: OpenStudy, file: StudyFile, engine: str, device: str) -> None:
    """Adds this run to the study's attribute `runs`."""
    run = this_run(file.directory, engine, device)
    store.append_study_attr(study.study_id, "runs", run, most=MAX_RUNS)


def describe_data(problem: Problem) -> dict[str, Any]:
    """Shape and hashes: two runs with equal descriptions saw the same rows in the same folds."""
    return {
        "sha256": problem.fingerprint,
        "rows": int(problem.x.shape[1]),
        "features": list(problem.input_shape),
        "task": problem.kind,
        "classes": None if problem.classes is None else [str(c) for c in problem.classes],
        "folds": list(problem.fold_fingerprints),
    }


def check_unchanged(name: str, stored: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises StudyChangedError naming the first differences."""
    if "spec" not in stored:
        raise RequestError(
            f"Study {name!r} was not made by sweep, so it cannot be continued. "
            "Choose another name under `study:`, or use --fresh."
        )
    changes = spec_differences(stored["spec"], _json(new["spec"]))
    if changes:
        raise StudyChangedError(
            f"Study {name!r} was run with another study file: {'; '.join(changes[:4])}. "
            "Change it back, or use --fresh to start over under a new name."
        )
    changes = differences(stored["data"], new["data"])
    if changes:
        raise StudyChangedError(
            f"Study {name!r} was run on other data: {'; '.join(changes[:4])}. "
            "Bring the data back, or use --fresh to start over under a new name."
        )


def stored_spec(attrs: dict[str, Any], name: str) -> StudySpec:
    """The specification that a stored study was made from."""
    from sweep.spec import validate

    if "spec" not in attrs:
        raise RequestError(f"Study {name!r} was not made by sweep: it has no study file.")
    return validate({**attrs["spec"], "study": name}, f"study {name!r}")


def _json(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))
