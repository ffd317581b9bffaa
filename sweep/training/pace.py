"""How long training will take: measured by training the first trials for a second or two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sweep.spec import Setting
from sweep.spec.exact import EXACT
from sweep.training.device import CPU
from sweep.training.engines import slots_in_flight
from sweep.training.experiment import Experiment
from sweep.training.lanes import LanesEngine
from sweep.training.lanes_compile import WORTH_SECONDS
from sweep.training.lanes_program import Program
from sweep.training.lanes_stepper import STEP
from sweep.training.member import Done, Epoch, Event, Member, make_plan
from sweep.training.pool import GLANCE_SECONDS, START_SECONDS, ReferencePool, is_worth
from sweep.training.reference import predict
from sweep.training.unbatchable import explain

MEASURED_SECONDS = 1.5
"""Trained for so long, all programs together, beside what is not timed."""
MOST_SECONDS = 10.0
"""Trained for no longer, whatever is not known by then."""
WARM_UP = 2
"""The first turns of a program import and allocate; they are not timed."""
COMPILING = 1.6
"""Compiling beside training takes so many times the seconds of training that make it worth while,
and cannot be tried out in two."""
COMPILED_GAIN = 2.0
"""By how much a compiled step is assumed to be quicker than the traced one that was measured."""
EXACT_SECONDS = 3.0
"""Solved for no longer."""


class Pace(NamedTuple):
    """How all members of a study will train. Seconds are of the whole machine.

    `training` holds `scoring` and `compiling` (tracing, and eager steps until that is done), and
    `step`, an update of one member, is what was measured; None where nothing was.
    """

    engine: str
    training: float | None
    scoring: float = 0.0
    compiling: float = 0.0
    step: float | None = None


def measure(
    experiment: Experiment, settings: Sequence[Setting], trials: int, memory: int | None = None
) -> Pace:
    """Trains the first trials of a study, those of `settings`, for about `MEASURED_SECONDS`.

    With S the updates of a member (its epochs times its batches), s the seconds of an update, c
    those of a score on all test rows and E the epochs, training takes

        sum over programs of members * (S * s + E * c + c * training rows / test rows)
        + building all models + the first turns of each program + tracing its step

    where s and c are measured with as many lanes, on as many threads, as a run has. Members that
    cannot be batched are timed one at a time, and divided by the processes that they are worth.
    A step that was compiled before is timed as such; one that will be compiled is assumed to be
    `COMPILED_GAIN` times as quick as the eager one, after the seconds that compiling takes.

    Whatever ends a member early (divergence, pruning, early stopping) is not foreseen.
    """
    folds = range(len(experiment.problem.folds))
    slots = slots_in_flight(experiment.spec.concurrency, len(folds), experiment.device)
    engine = LanesEngine(experiment, slots, compile_when="kept", memory=memory)
    try:
        if settings[0].optimizer == EXACT:
            return _exact(engine, settings, trials)
        began = time.perf_counter()
        for number, setting in enumerate(settings):
            for fold in folds:
                engine.add(Member(number, fold, setting))
        building = (time.perf_counter() - began) / len(settings) * trials
        engine.expect((trials - len(settings)) * len(folds))
        return _paces(engine, settings, trials / len(settings), building)
    finally:
        engine.close()


@dataclass
class _Timed:
    """What was measured of one program. `members` and their mean `steps` and `epochs` are of the
    sample.
    """

    program: Program
    members: int
    steps: float
    epochs: float
    turns: int = 0
    seconds: float = 0.0
    updates: int = 0
    scored: int = 0
    ended: int = 0
    test: float = 0.0
    """Seconds of a member's score on its test rows."""
    warm_up: float = 0.0
    warm_updates: int = 0
    tracing: float = 0.0

    @classmethod
    def of(cls, program: Program) -> _Timed:
        plans = [model.plan for model in program.models()]
        steps = float(np.mean([plan.steps for plan in plans]))
        return cls(program, len(plans), steps, float(np.mean([plan.epochs for plan in plans])))

    def take(self, seconds: float, updates: int, events: Sequence[Event]) -> None:
        """A turn of training."""
        self.turns += 1
        if self.turns <= WARM_UP:
            self.warm_up += seconds
            self.warm_updates += updates
            self.test = _score_seconds(self.program) or self.test
        else:
            self.seconds += seconds
            self.updates += updates
            self.scored += sum(isinstance(event, Epoch) for event in events)
            self.ended += sum(isinstance(event, Done) for event in events)

    def forget(self) -> None:
        """The step is another one from now on."""
        self.turns = self.updates = self.scored = self.ended = 0
        self.seconds = 0.0


def _paces(engine: LanesEngine, settings: Sequence[Setting], times: float, building: float) -> Pace:
    """Of a sample of which the study has so many `times` as much; `building` is of all models."""
    all_members = engine.pending
    timed = _train(engine, [_Timed.of(program) for program in engine.programs])
    parts = [_lanes(one, times) for one in timed]
    left = all_members - sum(one.members for one in timed)
    if left:
        parts.append(_one_by_one(engine, settings, left, times))
    known = [part for part in parts if part.training is not None]
    if not known:
        return Pace(engine.describe(), None)
    if timed:
        slots = sum(min(one.members, one.program.max_slots) for one in timed)
        many = f" in {len(timed)} programs" if len(timed) > 1 else ""
        said = list(dict.fromkeys(part.engine for part in parts[: len(timed)]))
        how = said[0] if len(said) == 1 else "partly compiled"
        words = [f"lanes, {slots} slots{many}, {how}{engine.experiment.where}"]
    else:
        words = []
    words += [part.engine for part in parts[len(timed) :]]
    # Programs that no turn came to are taken for the mean of the others.
    whole = len(parts) / len(known)
    return Pace(
        " + ".join(words),
        building + whole * sum(part.training or 0.0 for part in known),
        whole * sum(part.scoring for part in known),
        whole * sum(part.compiling for part in known),
        float(np.mean([part.step for part in known])),
    )


def _train(engine: LanesEngine, timed: list[_Timed]) -> list[_Timed]:
    """Lets all programs have their turns; returns those that could be batched."""
    spent = 0.0
    while True:
        timed = [one for one in timed if one.program in engine.programs]
        busy = [one for one in timed if one.program.pending]
        so_far = sum(one.seconds for one in timed)
        if not busy or spent > MOST_SECONDS:
            return timed
        if so_far > MEASURED_SECONDS and all(one.seconds for one in busy):
            return timed
        before = {id(one): (one.program.trained, _was_traced(one)) for one in timed}
        start = time.perf_counter()
        events = engine.advance()
        seconds = time.perf_counter() - start
        spent += seconds
        timed = [one for one in timed if one.program in engine.programs]
        for one in timed:
            trained, was_traced = before[id(one)]
            if _was_traced(one) and not was_traced:
                # Looked for among the compiled steps, which takes a second or two.
                one.tracing = seconds
                spent -= seconds
                one.forget()
            elif one.program.trained > trained:
                try:
                    one.take(seconds, one.program.trained - trained, events)
                except (Exception, SystemExit) as error:
                    # A run meets it at the end of an epoch: its scores cannot be batched.
                    engine.hand_over(one.program, explain(error))


def _was_traced(one: _Timed) -> bool:
    compilation = one.program.stepper.compilation
    return compilation is not None and compilation.traced is not None


def _worth(one: _Timed) -> float:
    """Seconds of training that make it worth while to compile the step."""
    compilation = one.program.stepper.compilation
    return WORTH_SECONDS if compilation is None else compilation.worth()


def _lanes(one: _Timed, times: float) -> Pace:
    """All members of one program; `engine` tells how they step."""
    how = one.program.stepper.how
    if not one.updates and one.warm_updates:
        # All over before it was warm.
        step = one.warm_up / one.warm_updates
        training = one.members * times * one.steps * step
        words = "eager: too little to compile" if how == "eager" else how
        return Pace(words, training, step=step)
    if not one.updates:
        return Pace(how, None)
    test, folds = one.test, one.program.experiment.problem.folds
    # A member that may stop early is scored again, with its best epoch's weights.
    again = any(bank.ends.best for bank in one.program.banks)
    last = test * (again + len(folds[0].train) / len(folds[0].test))
    spent = one.scored * test + one.ended * last
    # Where scoring was quicker than it is by itself, some time is left for the steps.
    step = max(one.seconds - spent, 0.1 * one.seconds) / one.updates
    members = one.members * times
    scoring = members * (one.epochs * test + last)
    stepping, waited = members * one.steps * step, one.tracing
    if how != "eager":
        words = how
    elif STEP in one.program.stepper.errors:
        made = "compiling" if one.program.experiment.device == CPU else "capturing it"
        words = f"eager, since {made} fails"
    elif stepping < (worth := _worth(one)):
        words = "eager: too little to compile"
    else:
        words = f"compiled after about {COMPILING * worth:.0f} s"
        eager = min(stepping, COMPILING * worth)
        stepping = (stepping - eager) / COMPILED_GAIN
        waited += eager
    return Pace(words, one.warm_up + stepping + scoring + waited, scoring, waited, step)


def _score_seconds(program: Program) -> float:
    """Of one member's score on its test rows, when a bank's lanes are scored together."""
    bank = program.banks[0]
    lanes = {slot: lane for slot, lane in enumerate(bank.seats.lanes) if lane is not None}
    if not lanes or bank.state is None:
        return 0.0
    taken = []
    program.stepper.wait()
    for _ in range(3):  # The first time gathers the rows.
        began = time.perf_counter()
        program.evaluation.scores(lanes, bank.state, "test", [program.experiment.score])
        taken.append(time.perf_counter() - began)
    return min(taken) / len(lanes)


def _one_by_one(
    engine: LanesEngine, settings: Sequence[Setting], members: int, times: float
) -> Pace:
    """The members that the reference engine trains."""
    pool, experiment = engine.reference, engine.experiment
    steps, seconds, scored = _reference_steps(pool)
    why = f": {engine.why}" if engine.why else ""
    if not steps:
        return Pace(pool.describe() + why, None)
    problem = experiment.problem
    plans = [make_plan(problem, experiment.spec, Member(0, 0, s), False) for s in settings]
    row = _row_seconds(experiment, settings[0])
    test, train = len(plans[0].test) * row, len(plans[0].train) * row
    step = max(seconds - scored * test, 0.1 * seconds) / steps
    epochs = float(np.mean([plan.epochs for plan in plans]))
    each = (epochs + 1) * test + train
    scoring = members * times * each
    training = members * times * float(np.mean([plan.steps for plan in plans])) * step + scoring
    if pool.processes > 1 and is_worth(training, pool.processes):
        n = pool.processes
        words = f"reference, {n} processes{why}"
        return Pace(words, training / n + START_SECONDS, scoring / n, 0.0, step / n)
    return Pace(f"reference, one model at a time{why}", training, scoring, 0.0, step)


def _reference_steps(pool: ReferencePool) -> tuple[int, float, int]:
    """(updates, seconds, epochs scored) of a moment's training in this process."""
    scored, steps, seconds = 0, 0, 0.0
    pool.advance()
    first = pool.steps
    # More would start other processes.
    while pool.pending and seconds < 0.7 * GLANCE_SECONDS:
        began = time.perf_counter()
        events = pool.advance()
        seconds += time.perf_counter() - began
        scored += sum(isinstance(event, Epoch) for event in events)
        steps = pool.steps - first
    return steps, seconds, scored


def _row_seconds(experiment: Experiment, setting: Setting) -> float:
    """Of a model's output for one row of many."""
    problem = experiment.problem
    rows = problem.folds[0].test[:512]
    try:
        module = experiment.build_model(setting, fold=0).to(experiment.device)
        began = time.perf_counter()
        predict(module, experiment.placed.x_of(0), rows, problem.n_outputs).cpu()
    except (Exception, SystemExit):
        # Its trials fail with this, and take no time for it.
        return 0.0
    return (time.perf_counter() - began) / len(rows)


def _exact(engine: LanesEngine, settings: Sequence[Setting], trials: int) -> Pace:
    """Solves some trials, and takes the rest to be like them: how many iterations a model needs
    cannot be told from fewer.
    """
    folds = range(len(engine.experiment.problem.folds))

    def add(number: int, setting: Setting) -> None:
        for fold in folds:
            engine.add(Member(number, fold, setting))

    # The first trial alone: whatever is prepared once is prepared for it.
    add(0, settings[0])
    words, (_, first) = engine.describe(), _solve(engine)
    for number, setting in enumerate(settings, 1):
        add(number, setting)
    ended, seconds = _solve(engine)
    return Pace(words, first + trials * len(folds) * seconds / ended if ended else None)


def _solve(engine: LanesEngine) -> tuple[int, float]:
    """(members solved, seconds taken)"""
    ended, began = 0, time.perf_counter()
    while engine.pending and time.perf_counter() - began < EXACT_SECONDS:
        ended += sum(isinstance(event, Done) for event in engine.advance())
    return ended, time.perf_counter() - began
