"""What tests of training share."""

import pytest

from sweep.training.lanes_epochs import EpochEnds


@pytest.fixture(params=["awaited", "apart"])
def scored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of an epoch are awaited; or, as where they are compiled, they come from a copy while
    the lanes go on."""
    if request.param == "apart":
        monkeypatch.setattr(EpochEnds, "are_apart", property(lambda self: not self.best))
