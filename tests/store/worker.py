"""A worker process for tests: python -m tests.store.worker URL TOTAL [PAUSE_SECONDS]

Joins the study `shared`, claims trials in small batches, ends each as COMPLETE with its number as
the value, and appends the numbers it ended to standard output.
"""

from __future__ import annotations

import random
import sys
import time

from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from sweep.store.storage import Finished, Store, new_worker

SPACE = {"x": FloatDistribution(0, 1)}


def main(url: str, total: int, pause: float = 0.0) -> None:
    worker = new_worker()
    print("started", flush=True)
    with Store.open(url, create=True) as store:
        study = store.create_study("shared", "minimize", {"knobs": {"varied": ["x"]}})
        print("joined", flush=True)
        while True:
            held = store.resume_trials(study, limit=2, worker=worker)
            batch = [({"x": random.random()}, SPACE) for _ in range(random.randint(1, 4))]
            held += store.create_trials(study, batch, total=total, worker=worker)
            if not held:
                counts = store.counts(study)
                if counts["RUNNING"] + counts["WAITING"] == 0:
                    break
                time.sleep(0.05)
                continue
            store.report({trial.trial_id: {0: 1.0} for trial in held})
            time.sleep(pause * random.random())
            store.heartbeat(worker)
            given_back = [t for t in held if random.random() < 0.05]
            store.give_back(given_back, worker)
            ended = [t for t in held if t not in given_back]
            results = [
                Finished(
                    t,
                    TrialState.COMPLETE,
                    float(t.number),
                    {0: 1.0, 1: 2.0},
                    {"fold_scores": [t.params["x"]], "worker": worker},
                )
                for t in ended
            ]
            for trial, kept in zip(ended, store.finish_trials(results, worker), strict=True):
                if kept:
                    print(trial.number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:]))
