"""What tests of training share."""

from pathlib import Path

import pytest

from sweep.training.compile_program import make_native
from sweep.training.lanes_cache import alone
from sweep.training.lanes_compile import Compilation
from sweep.training.lanes_epochs import EpochEnds
from sweep.training.lanes_operators import NATIVE_SOURCES


@pytest.fixture(scope="session")
def native() -> Path:
    """The library of NATIVE_SOURCES, where runs on this machine find it: making it takes long."""
    library = Compilation({}, None).native
    with alone(str(library)):
        if not make_native(NATIVE_SOURCES, str(library), f"{library}.scratch"):
            pytest.skip("no C++ compiler here, or an old one: torch's own products serve")
    return library


@pytest.fixture(params=["awaited", "apart"])
def scored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of an epoch are awaited; or, as where they are compiled, they come from a copy while
    the lanes go on."""
    if request.param == "apart":
        monkeypatch.setattr(EpochEnds, "are_apart", property(lambda self: not self.best))
