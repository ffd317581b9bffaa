"""The peer: digits_mlp.yaml's work as scikit-learn's users write it, with skorch and GridSearchCV.

    python plain_skorch.py CANDIDATES

A pipeline (scaling per fold, network), all cores, one thread each, no printing, nothing held out,
no final fit. Candidates differ in learning rate, clipping and weight decay: the penalty that skorch
gives for nothing. Prints JSON as plain_optuna.py does. The workers are started, and have imported
what they need, before the clock runs.
"""

import json
import sys
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.feature_selection import VarianceThreshold
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import GradientNormClipping
from torch import nn

EPOCHS, FOLDS = 20, 5


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(61, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x):
        return self.layers(x)


def search(candidates, epochs):
    x, y = load_digits(return_X_y=True)
    x = VarianceThreshold().fit_transform(x).astype(np.float32)
    net = NeuralNetClassifier(
        MLP,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        max_epochs=epochs,
        batch_size=64,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[("clip", GradientNormClipping(None))],
        callbacks__print_log=None,
        verbose=0,
        torch_load_kwargs=None,
    )
    rates = np.geomspace(1e-3, 0.1, candidates // 2)
    grid = {
        "neuralnetclassifier__lr": rates.tolist(),
        "neuralnetclassifier__callbacks__clip__gradient_clip_value": [None, 1.0],
        "neuralnetclassifier__optimizer__weight_decay": [1e-4],
    }
    found = GridSearchCV(
        make_pipeline(StandardScaler(), net),
        grid,
        scoring="neg_log_loss",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=0),
        n_jobs=-1,
        refit=False,
        error_score="raise",
    )
    return found.fit(x, y)


if __name__ == "__main__":
    candidates = int(sys.argv[1])
    torch.set_num_threads(1)
    search(2, 1)
    began = time.perf_counter()
    found = search(candidates, EPOCHS)
    seconds = time.perf_counter() - began
    rate = len(found.cv_results_["params"]) * FOLDS * EPOCHS / seconds
    best = -float(found.best_score_)
    print(json.dumps({"seconds": seconds, "epochs_per_second": rate, "best": best}))
