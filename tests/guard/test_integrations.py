"""The guard inside Optuna, Lightning and skorch, the real ones."""

from __future__ import annotations

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sweep
from sweep.store import queries

from .loops import H, batch, loss_of, quadratic


def test_a_trial_of_plain_optuna_fails_with_the_diagnosis_and_the_study_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path / 'plain.db'}"

    def objective(trial):
        model = quadratic()
        rate = trial.suggest_float("learning_rate", 1e-3, 10, log=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        guard = sweep.watch(model, optimizer, trial=trial)
        for _ in range(300):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            guard.check(loss)
            optimizer.step()
        return loss.item()

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="plain", storage=url)
    for rate in (0.3, 0.9, 2.0):
        study.enqueue_trial({"learning_rate": rate})
    study.optimize(objective, n_trials=3, catch=(sweep.Diverged,))
    states = [t.state for t in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    failure = study.trials[1].user_attrs["failure"]
    assert failure["kind"] == "divergence" and "learning_rate below 0.5" in failure["advice"]
    # The commands of sweep read it like any other study's.
    rows = queries.diverged(url, "plain")
    assert [row[rows.columns.index("trial")] for row in rows.rows] == [1, 2]
    assert "below 0.5" in rows.rows[0][rows.columns.index("advice")]


def module(rate: float):
    """A Lightning module on the quadratic; `checked` counts its updates."""
    import pytorch_lightning as pl

    class Quadratic(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = quadratic(torch.float32)

        def training_step(self, batch, index):
            return loss_of(self.net)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate)

    return Quadratic()


LOADER = DataLoader(TensorDataset(torch.zeros(64, 1)), batch_size=1)


def fit(rate, folder, **options):
    """Trains for 64 batches an epoch; the callback."""
    import pytorch_lightning as pl

    from sweep.guard.lightning import DivergenceGuard

    callback = DivergenceGuard()
    path = options.pop("ckpt_path", None)
    trainer = pl.Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    try:
        trainer.fit(module(rate), LOADER, ckpt_path=path)
    finally:
        callback.trainer = trainer
    return callback


quiet = pytest.mark.filterwarnings("ignore")


@quiet
@pytest.mark.parametrize("clip", [None, 1e30])
def test_lightning_raises_above_the_bound_before_its_clipping(tmp_path, clip):
    assert fit(0.99 * 2 / H, tmp_path).guard.step == 128
    with pytest.raises(sweep.Diverged) as caught:
        fit(3 * 2 / H, tmp_path, gradient_clip_val=clip)
    failure = caught.value.failure
    assert failure["layer"] == "net.weight" and failure["reason"] == "loss_explosion"
    exact = "below 0.5" in failure["advice"] or "below 0.499" in failure["advice"]
    assert exact == (clip is None), failure["advice"]


@quiet
def test_lightning_counts_accumulated_batches_as_one_update(tmp_path):
    assert fit(0.1, tmp_path, accumulate_grad_batches=4).guard.step == 32


@quiet
def test_lightning_keeps_the_guards_state_in_the_checkpoint(tmp_path):
    first = fit(0.1, tmp_path, max_epochs=1)
    first.trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = fit(0.1, tmp_path, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert (first.guard.step, again.guard.step) == (64, 128)


def net(rate: float, **options):
    from skorch import NeuralNetRegressor

    from sweep.guard.skorch import DivergenceGuard

    return NeuralNetRegressor(
        nn.Linear(4, 1),
        lr=rate,
        max_epochs=60,
        batch_size=-1,
        train_split=None,
        verbose=0,
        callbacks=[DivergenceGuard(**options)],
    )


def test_skorch_raises_where_it_explodes_and_only_there():
    x, y = (t.numpy() for t in batch())
    fine = net(0.05).fit(x, y)
    assert dict(fine.callbacks_)["DivergenceGuard"].guard_.step == 60
    with pytest.raises(sweep.Diverged) as caught:
        net(5.0).fit(x, y)
    failure = caught.value.failure
    assert failure["layer"].endswith(("weight", "bias"))
    assert "lower learning_rate below" in failure["advice"]


@quiet
def test_a_setting_that_diverges_is_a_failed_fit_of_grid_search():
    from sklearn.model_selection import GridSearchCV

    x, y = (t.numpy() for t in batch())
    search = GridSearchCV(net(0.05), {"lr": [0.05, 5.0]}, cv=2, scoring="neg_mean_squared_error")
    search.fit(x, y)
    assert search.best_params_ == {"lr": 0.05}
