"""Training on a thread of its own: it goes on while trials are chosen and stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from sweep.training.schedule import Engine, Finished, Report, Schedule

News = list[Report | Finished]


class Trainer:
    """While entered, trains whatever the schedule has, slice after slice.

    What was decided about trials (`do`, then `go_on`) happens between two slices; nothing else may
    touch the schedule or its engine. What came of training waits to be collected (`news`).
    """

    def __init__(self, schedule: Schedule, engine: Engine) -> None:
        self.schedule, self.engine = schedule, engine
        self.words = engine.describe()
        """How the engine trains at present."""
        self._to_come = 0
        self._changed = threading.Condition()
        self._said: list[Callable[[], None]] = []
        self._decided: list[Callable[[], None]] = []
        self._news: News = []
        self._error: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="training")

    def __enter__(self) -> Trainer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the end of the slice; what was decided since is never done."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._thread.join()

    def do(self, act: Callable[[], None]) -> None:
        """Has this done before the next slice after `go_on`."""
        self._said.append(act)

    def go_on(self, to_come: int) -> None:
        """Has all of it done at once: trials that start together stay together. So many trials are
        still to be started.
        """
        with self._changed:
            self._decided += self._said
            self._to_come = to_come
            self._changed.notify_all()
        self._said.clear()

    def news(self, timeout: float) -> News:
        """What came of training since this was last asked, or comes within so many seconds.

        Raises what training has raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._error, timeout)
            if self._error is not None:
                raise self._error
            news, self._news = self._news, []
        return news

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._train()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _train(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._decided or self.schedule.in_flight or self._is_over
            )
            decided, self._decided = self._decided, []
        if self._is_over:
            return
        for act in decided:
            act()
        self.engine.expect(max(0, self._to_come) * self.schedule.n_folds)
        news = self.schedule.advance()
        self.words = self.engine.describe()
        if news:
            with self._changed:
                self._news += news
                self._changed.notify_all()
