"""The peer: digits_mlp.yaml as a careful user writes it with Optuna and PyTorch alone.

    python plain_optuna.py TRIALS DATABASE [WIDTH BATCH EPOCHS]

One model at a time; data standardised once a fold, tensors kept, batches by index, one thread (for
networks this small a second one only costs), WAL on the database. Prints JSON.
"""

import json
import math
import sys
import time

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import nn

TRIALS, DATABASE = int(sys.argv[1]), sys.argv[2]
WIDTH, BATCH, EPOCHS = (int(a) for a in (sys.argv[3:] or ("64", "64", "20")))


def folds():
    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(0) > 0]
    for fit, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        mean, scale = x[fit].mean(0), x[fit].std(0)
        scale[scale == 0] = 1
        z = torch.tensor((x - mean) / scale, dtype=torch.float32)
        labels = torch.tensor(y)
        yield z[fit], labels[fit], z[test], labels[test]


FOLDS = list(folds())
EPOCHS_TRAINED = 0
LOSS = nn.CrossEntropyLoss()


def train(fold, rate, regularizer, lam, clip):
    x, y, x_test, y_test = FOLDS[fold]
    torch.manual_seed(fold)
    model = nn.Sequential(
        nn.Linear(x.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )  # fmt: skip
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    l1 = {"l1": lam, "elastic_net": lam / 2}.get(regularizer, 0.0)
    l2 = {"l2": lam, "elastic_net": lam / 2}.get(regularizer, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    global EPOCHS_TRAINED
    for _ in range(EPOCHS):
        EPOCHS_TRAINED += 1
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = LOSS(model(x[rows]), y[rows])
            if l1:
                loss = loss + l1 * sum(w.abs().sum() for w in weights)
            if l2:
                loss = loss + l2 / 2 * sum(w.square().sum() for w in weights)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError("the loss is not finite")
    model.eval()
    with torch.no_grad():
        return LOSS(model(x_test), y_test).item()


def objective(trial):
    settings = (
        trial.suggest_float("learning_rate", 1e-3, 3.0, log=True),
        trial.suggest_categorical("regularizer", ["none", "l1", "l2", "elastic_net"]),
        trial.suggest_float("lambda", 1e-6, 0.1, log=True),
        trial.suggest_categorical("clip_norm", [None, 1.0]),
    )
    scores = [train(fold, *settings) for fold in range(5)]
    trial.set_user_attr("fold_scores", scores)
    return float(np.mean(scores))


if __name__ == "__main__":
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.perf_counter()
    study = optuna.create_study(
        study_name="plain",
        storage=f"sqlite:///{DATABASE}",
        sampler=optuna.samplers.TPESampler(seed=0),
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=TRIALS, catch=(FloatingPointError,))
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "best": study.best_value, "epochs": EPOCHS_TRAINED}))
