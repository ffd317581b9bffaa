"""Optuna's own storage contract, on what `Store.optuna_storage` returns."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages._rdb.models import BaseModel
from optuna.testing.pytest_storages import StorageTestCase

from sweep.store.schema import OPTUNA_SCHEMA, _optuna_scripts, claims
from sweep.store.storage import Store


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def emptied_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all the cases: a new one for each takes longer than the case."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('contract') / 'sweep.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    with Store.open(url, create=True):
        pass
    return url


class TestOptunaStorage(StorageTestCase):
    @pytest.fixture
    def storage(
        self, emptied_url: str, request: pytest.FixtureRequest
    ) -> Iterator[optuna.storages.BaseStorage]:
        with Store.open(emptied_url) as store:
            yield store.optuna_storage()
            with store.engine.begin() as connection:
                connection.execute(sa.delete(claims))
                for table in reversed(BaseModel.metadata.sorted_tables):
                    if table.name != "version_info":
                        connection.execute(sa.delete(table))
        if "pickle" in request.node.name:
            gc.collect()

    # The suite leaves the connection of its unpickled copy open.
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_pickle_storage(self, storage: optuna.storages.BaseStorage) -> None:
        super().test_pickle_storage(storage)


def test_the_store_was_written_for_the_installed_optunas_tables() -> None:
    assert _optuna_scripts()[0] == OPTUNA_SCHEMA


def test_a_database_made_by_the_store_has_the_tables_optuna_makes(database_url: str) -> None:
    """Optuna finds nothing to create or to complain about, and its version tables filled."""
    with Store.open(database_url, create=True):
        pass
    storage = optuna.storages.RDBStorage(database_url)
    assert storage.get_current_version() == storage.get_head_version()
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2
    storage.remove_session()
    storage.engine.dispose()
