"""Ask, train, tell: the loop that runs a study.

Parameters come from the mirror, trials from the store, scores from the schedule. Up to
`concurrency` trials are in flight; what finishes is stored within a second, in bulk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.search.mirror import Mirror
from sweep.search.signals import StopRequest
from sweep.search.space import distributions
from sweep.search.status import Observer, Silent, Status
from sweep.search.study import OpenStudy, open_study, record_run
from sweep.search.trainer import News, Trainer
from sweep.spec import Choices, IntRange, StudyFile, StudySpec
from sweep.store.storage import Cursor, Finished, Store, Trial, new_worker
from sweep.training.engines import make_engine
from sweep.training.experiment import Experiment
from sweep.training.preflight import make_experiment
from sweep.training.schedule import Engine, Report, Schedule, TrialResult
from sweep.training.schedule import Finished as TrialFinished

FLUSH_SECONDS = 0.5
REPORT_SECONDS = 1.5
HEARTBEAT_SECONDS = 4.0
LISTEN_SECONDS = 1.0
WAIT_SECONDS = 0.1
"""The longest that nothing is done but waiting for training."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    study: str
    status: Status
    stopped_by: int | None


def run_study(
    file: StudyFile,
    url: str,
    *,
    trials: int | None = None,
    timeout: float | None = None,
    fresh: bool = False,
    engine: str = "auto",
    memory: int | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Ended:
    """Runs or continues a study up to `trials` trials in all (default: the file's).

    Ends early after `timeout` seconds, or on SIGINT / SIGTERM: finished trials are stored, those
    in flight given back. `memory`: bytes that batched training may take (default: half of what is
    free, on `device`). Raises RequestError and its kin before anything is trained or written,
    where the request is wrong.
    """
    observer = observer or Silent()
    spec = file.spec
    experiment, _ = make_experiment(file, device)
    problem, direction = experiment.problem, experiment.score.direction
    for text in problem.notices:
        observer.notice(text)
    with Store.open(url, create=True) as store:
        study = open_study(store, file, problem, direction, fresh=fresh)
        made = make_engine(experiment, engine, observer.notice, memory)
        loop = Loop(store, study, experiment, trials or spec.trials, made, observer)
        is_over = False
        try:
            record_run(store, study, file, made.describe(), experiment.device.type)
            with StopRequest() as stop:
                loop.run(stop, timeout)
            is_over = not stop.requested
        finally:
            made.close(finish=is_over)
    return Ended(study.name, loop.status, stop.signal)


def make_mirror(
    experiment: Experiment, sampler: str | None = None, concurrency: int | None = None
) -> Mirror:
    """Who chooses the trials of a study; by another sampler or with other trials in flight."""
    spec = experiment.spec
    return Mirror(
        direction=experiment.score.direction,
        space=distributions(spec),
        sampler=sampler or spec.sampler,
        pruner=spec.pruner,
        seed=spec.seed,
        concurrency=concurrency or spec.concurrency,
        n_folds=len(experiment.problem.folds),
        enqueue=spec.enqueue,
        epochs=_most_epochs(spec),
    )


@dataclass
class InFlight:
    """A trial of this process in training."""

    trial: Trial
    started: datetime
    reports: int
    """How many it will make at most."""
    values: dict[int, float] = field(default_factory=dict)
    reported: dict[int, float] = field(default_factory=dict)


class Loop:
    """One process's share of a study."""

    def __init__(
        self,
        store: Store,
        study: OpenStudy,
        experiment: Experiment,
        total: int,
        engine: Engine,
        observer: Observer,
    ) -> None:
        spec = experiment.spec
        self.store, self.study, self.spec, self.observer = store, study, spec, observer
        self.space = distributions(spec)
        self.worker = new_worker()
        self.mirror = make_mirror(experiment)
        if self.mirror.n_trials is not None:
            total = min(total, self.mirror.n_trials)
        self.total = total
        self.status = Status(study.name, total, experiment.score.direction, spec.score_name)
        self.waves = spec.pruner == "wilcoxon"
        self.schedule = Schedule(engine, len(experiment.problem.folds), waves=self.waves)
        self.trainer = Trainer(self.schedule, engine)
        self.flying: dict[int, InFlight] = {}
        self.unstored: list[tuple[Finished, FrozenTrial]] = []
        self.cursor: Cursor | None = None
        self.counted: set[int] = set()
        self._last: dict[str, float] = {}

    def run(self, stop: StopRequest, timeout: float | None) -> None:
        """Until every trial is finished, the time is up, or a stop is asked for.

        One thread trains; this one meanwhile stores what finished and chooses what comes next.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self._listen()
        self.status.done_before = self.status.done
        try:
            with self.trainer:
                while not stop.requested and (until is None or time.monotonic() < until):
                    self._fill()
                    if not self.flying and self._all_done():
                        break
                    self._housekeeping()
                    self._take_in(self.trainer.news(WAIT_SECONDS))
            self._take_in(self.trainer.news(0.0))
        finally:
            self._flush()
            self.store.give_back([f.trial for f in self.flying.values()], self.worker)
            self.flying.clear()
            self._show()

    @property
    def _to_come(self) -> int:
        """Trials that are neither finished nor in training here."""
        return self.total - len(self.counted) - len(self.unstored) - len(self.flying)

    # Starting trials.

    def _fill(self) -> None:
        self._start_more()
        self.trainer.go_on(self._to_come)

    def _start_more(self) -> None:
        room = min(self.spec.concurrency - len(self.flying), self._to_come)
        if room <= 0:
            return
        if self._due("resume", LISTEN_SECONDS):
            for trial in self.store.resume_trials(
                self.study.study_id, limit=room, worker=self.worker
            ):
                self.mirror.adopt(trial.number, trial.params)
                self._start(trial)
                room -= 1
        while room > 0:
            made = self._ask(room)
            if made is None:
                # Another process was first with these numbers: choose again, knowing of it.
                self._listen()
                continue
            for trial in made:
                self._start(trial)
            return

    def _ask(self, most: int) -> list[Trial] | None:
        """New trials, at most `most`, as many as may be chosen now; None if they were too late."""
        if not self.mirror.may_ask():
            return []
        first = sum(self.store.counts(self.study.study_id).values())
        asked: list[dict[str, Any]] = []
        while len(asked) < most and first + len(asked) < self.total and self.mirror.may_ask():
            asked.append(self.mirror.ask(first + len(asked)))
        if not asked:
            return []
        made = self.store.create_trials(
            self.study.study_id,
            [(params, self.space) for params in asked],
            total=self.total,
            worker=self.worker,
            expected_first=first,
        )
        for i in range(len(made), len(asked)):
            self.mirror.withdraw(first + i)
        return made or None

    def _start(self, trial: Trial) -> None:
        setting = self.spec.setting(trial.params)
        reports = self.schedule.n_folds if self.waves else setting.epochs
        self.flying[trial.number] = InFlight(trial, datetime.now(), reports)
        self.trainer.do(lambda: self.schedule.start(trial.number, setting))

    # Ending trials.

    def _take_in(self, news: News) -> None:
        for item in news:
            if isinstance(item, Report):
                self._on_report(item)
            else:
                self._on_finished(item)

    def _on_report(self, report: Report) -> None:
        flying = self.flying.get(report.trial)
        if flying is None:
            return
        flying.values[report.step] = flying.reported[report.step] = report.value
        if self.mirror.report(report.trial, report.step, report.value):
            self.trainer.do(lambda: self.schedule.cancel(report.trial))
            self._end(report.trial, TrialResult(intermediate=flying.values, pruned=True))

    def _on_finished(self, finished: TrialFinished) -> None:
        if finished.trial in self.flying:
            self._end(finished.trial, finished.result)

    def _end(self, number: int, result: TrialResult) -> None:
        flying = self.flying.pop(number)
        state = TrialState.COMPLETE
        if result.failure is not None:
            state = TrialState.FAIL
        elif result.pruned:
            state = TrialState.PRUNED
        finished = Finished(
            flying.trial,
            state,
            result.score,
            dict(result.intermediate),
            attributes(result),
            flying.started,
            datetime.now(),
        )
        frozen = frozen_trial(finished, self.space)
        self.unstored.append((finished, frozen))
        self.mirror.tell(frozen)

    # Now and then.

    def _housekeeping(self) -> None:
        if self._due("flush", FLUSH_SECONDS):
            self._flush()
        if self._due("heartbeat", HEARTBEAT_SECONDS) and self.flying:
            held = self.store.heartbeat(self.worker)
            for number, flying in list(self.flying.items()):
                if flying.trial.trial_id not in held:
                    # Asleep past the lease: somebody else trains it now.
                    self.trainer.do(partial(self.schedule.cancel, number))
                    self.mirror.withdraw(number)
                    del self.flying[number]
        if self._due("report", REPORT_SECONDS):
            self.store.report(
                {f.trial.trial_id: f.reported for f in self.flying.values() if f.reported}
            )
            for flying in self.flying.values():
                flying.reported = {}
        if self._due("listen", LISTEN_SECONDS):
            self._listen()
        self._show()

    def _show(self) -> None:
        self.status.engine = self.trainer.words
        self.status.running = len(self.flying)
        self.status.under_way = sum(len(f.values) / f.reports for f in self.flying.values())
        self.observer.update(self.status)

    def _flush(self) -> None:
        """Stores what has finished; a result whose claim was lost is somebody else's by now."""
        results, self.unstored = self.unstored, []
        kept = self.store.finish_trials([finished for finished, _ in results], self.worker)
        for (_, frozen), is_kept in zip(results, kept, strict=True):
            if is_kept:
                self._count(frozen)

    def _listen(self) -> None:
        """Takes in what other processes (or an earlier run) have finished."""
        trials, self.cursor = self.store.finished_since(self.study.study_id, self.cursor)
        for trial in trials:
            if trial.number not in self.counted:
                self.mirror.tell(trial)
                self._count(trial)

    def _count(self, trial: FrozenTrial) -> None:
        if trial.number not in self.counted:
            self.counted.add(trial.number)
            self.status.count(trial)

    def _all_done(self) -> bool:
        self._flush()
        if len(self.counted) < self.total:
            self._listen()
        return len(self.counted) >= self.total

    def _due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._last.get(what, -1e9) < seconds:
            return False
        self._last[what] = now
        return True


def attributes(result: TrialResult) -> dict[str, Any]:
    """What is stored of a trial beside its value."""
    if result.failure is not None:
        return {"failure": result.failure.as_json()}
    if result.fold_scores is None:
        return {}
    attrs: dict[str, Any] = {
        "fold_scores": result.fold_scores,
        "score_se": result.score_se,
        "train_scores": result.train_scores,
        "nonzero": result.nonzero,
    }
    if result.more_scores:
        attrs["scores"] = result.more_scores
    return attrs


def frozen_trial(finished: Finished, space: dict[str, Any]) -> FrozenTrial:
    """The trial as Optuna will read it back."""
    trial = create_trial(
        state=finished.state,
        value=finished.stored_value,
        params=finished.trial.params,
        distributions=space,
        user_attrs=dict(finished.user_attrs),
        intermediate_values=dict(finished.intermediate),
    )
    trial.number = finished.trial.number
    return trial


def _most_epochs(spec: StudySpec) -> int:
    knob = spec.train.epochs
    if isinstance(knob, Choices):
        return int(max(knob.choices))
    return int(knob.high if isinstance(knob, IntRange) else knob)
