"""docs/guard.md is run as it stands."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.test_readme import ROOT, fenced_blocks, first_misfit

BLOCKS = list(fenced_blocks((ROOT / "docs" / "guard.md").read_text("utf-8")))
EXAMPLES = [(b, shown) for b, shown in itertools.pairwise(BLOCKS) if b.language == "python"]


@pytest.mark.parametrize(("example", "shown"), EXAMPLES, ids=lambda b: f"line {b.line}")
def test_the_examples_print_what_is_shown(example, shown, tmp_path: Path) -> None:
    done = warm.run(
        [sys.executable, "-c", example.text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        text=True,
    )
    assert done.returncode == 0 and shown.language == "text"
    assert first_misfit(shown.text, done.stdout) is None, done.stdout
