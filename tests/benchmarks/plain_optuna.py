"""The peer: a study of `sweep` as a careful user writes it with Optuna and PyTorch alone.

    python plain_optuna.py mlp|cnn|rnn|gru TRIALS DATABASE [--width 64 --batch 64 --epochs 20]
                           [--processes 1]

One model at a time; PyTorch's own layers (nn.RNN and nn.GRU are fused kernels); data standardized
once a fold, tensors kept, batches by index, one thread (for networks this small a second one only
costs), WAL on the database. Several processes share the study, as Optuna's documentation has it.

Weights start and rows are ordered as in `sweep`, so that equal parameters must score the same.
Prints JSON: seconds after the start, and epochs of one fold that it trains a second. With 0 TRIALS
it prints the parameters GIVEN and their fold scores instead.
"""

import argparse
import json
import math
import multiprocessing
import sqlite3
import time

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import nn

from sweep.problem.randomness import Stream, derive_seed, permutation

LOSS = nn.CrossEntropyLoss()
GIVEN = {"learning_rate": 0.01, "regularizer": "l2", "lambda": 1e-4}
ALSO_GIVEN = {"cnn": {"dropout": 0.0}}


class Recurrent(nn.Module):
    def __init__(self, layer, n_features, width):
        super().__init__()
        self.recurrent = layer(n_features, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


def make_model(kind, width, dropout=0.0):
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(61, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 10),
        )  # fmt: skip
    if kind == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10),
        )  # fmt: skip
    return Recurrent({"rnn": nn.RNN, "gru": nn.GRU}[kind], 28, width)


def rows(kind):
    """(X, y, the axes over which a feature is standardized)."""
    if kind in ("rnn", "gru"):
        from sequences import digits_by_row

        return *digits_by_row(), (0, 1)
    x, y = load_digits(return_X_y=True)
    if kind == "cnn":
        return x.reshape(-1, 1, 8, 8), y, (0, 2, 3)
    return x[:, x.std(0) > 0], y, 0


def make_folds(kind):
    x, y, axes = rows(kind)
    split = StratifiedKFold(3 if kind == "cnn" else 5, shuffle=True, random_state=0)
    for fit, test in split.split(x, y):
        mean, scale = x[fit].mean(axes, keepdims=True), x[fit].std(axes, keepdims=True)
        scale[scale == 0] = 1
        z = torch.tensor((x - mean) / scale, dtype=torch.float32)
        labels = torch.tensor(y)
        yield z[fit], labels[fit], z[test], labels[test]


class Objective:
    def __init__(self, options):
        self.kind, self.width = options.kind, options.width
        self.batch, self.epochs = options.batch, options.epochs
        self.folds = list(make_folds(options.kind))
        self.epochs_trained = 0

    def __call__(self, trial):
        names = ["none", "l2", "group_lasso"] if self.kind == "cnn" else ["none", "l1", "l2"]
        if self.kind == "cnn":
            rate = trial.suggest_float("learning_rate", 3e-4, 0.1, log=True)
            lam = trial.suggest_float("lambda", 1e-5, 0.03, log=True)
            dropout, clip = trial.suggest_float("dropout", 0.0, 0.4), None
        else:
            names.append("elastic_net")
            rate = trial.suggest_float("learning_rate", 1e-3, 3.0, log=True)
            lam = trial.suggest_float("lambda", 1e-6, 0.1, log=True)
            dropout, clip = 0.0, trial.suggest_categorical("clip_norm", [None, 1.0])
        regularizer = trial.suggest_categorical("regularizer", names)
        scores = [
            self.train(fold, rate, regularizer, lam, clip, dropout)
            for fold in range(len(self.folds))
        ]
        trial.set_user_attr("fold_scores", scores)
        return float(np.mean(scores))

    def train(self, fold, rate, regularizer, lam, clip, dropout):
        x, y, x_test, y_test = self.folds[fold]
        torch.manual_seed(derive_seed(0, fold, Stream.INITIALIZATION))
        model = make_model(self.kind, self.width, dropout)
        weights = [p for n, p in model.named_parameters() if "weight" in n]
        l1 = {"l1": lam, "elastic_net": lam / 2}.get(regularizer, 0.0)
        l2 = {"l2": lam, "elastic_net": lam / 2}.get(regularizer, 0.0)
        if self.kind == "cnn":
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        for epoch in range(self.epochs):
            self.epochs_trained += 1
            order = torch.from_numpy(permutation(0, fold, epoch, len(x))).to(x.device)
            for batch in order.split(self.batch):
                loss = LOSS(model(x[batch]), y[batch])
                if l1:
                    loss = loss + l1 * sum(w.abs().sum() for w in weights)
                if l2:
                    loss = loss + l2 / 2 * sum(w.square().sum() for w in weights)
                if regularizer == "group_lasso":
                    groups = [w.flatten(1) for w in weights]
                    loss = loss + lam * sum(g.norm(dim=1).sum() * g.shape[1] ** 0.5 for g in groups)
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
            if not math.isfinite(loss.item()):
                raise FloatingPointError("the loss is not finite")
        model.eval()
        with torch.no_grad():
            score = LOSS(model(x_test), y_test).item()
        if not math.isfinite(score):
            raise FloatingPointError("the score is not finite")
        return score


def open_study(database, seed):
    return optuna.create_study(
        study_name="plain",
        storage=f"sqlite:///{database}",
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )


def work(options, seed, trials):
    """Epochs that this process trains a second, its start aside."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objective, study = Objective(options), open_study(options.database, seed)
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials, catch=(FloatingPointError,))
    return objective.epochs_trained / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["mlp", "cnn", "rnn", "gru"])
    parser.add_argument("trials", type=int)
    parser.add_argument("database")
    for name, default in (("width", 64), ("batch", 64), ("epochs", 20), ("processes", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not options.trials:
        torch.set_num_threads(1)
        params = GIVEN | ALSO_GIVEN.get(options.kind, {"clip_norm": 1.0})
        objective, trial = Objective(options), optuna.trial.FixedTrial(params)
        objective(trial)
        print(json.dumps({"params": params, "fold_scores": trial.user_attrs["fold_scores"]}))
        return
    began = time.perf_counter()
    with sqlite3.connect(options.database) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    study = open_study(options.database, 0)
    each = options.trials // options.processes
    if options.processes == 1:
        rates = [work(options, 0, each)]
    else:
        study._storage.remove_session()
        with multiprocessing.get_context("fork").Pool(options.processes) as pool:
            tasks = [(options, seed, each) for seed in range(options.processes)]
            rates = pool.starmap(work, tasks, chunksize=1)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "epochs_per_second": sum(rates)}))


if __name__ == "__main__":
    main()
