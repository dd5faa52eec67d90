"""A planted set for the tests of check."""

import shutil
from pathlib import Path

import pytest

from tests.data_prep import planted
from tests.data_prep.checked import ROWS


@pytest.fixture(scope="session")
def planted_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, planted.Expected]:
    """The folder of a planted set and what is planted. Tests that change it take ``own_set``."""
    folder = tmp_path_factory.mktemp("planted")
    return folder, planted.make(folder, ROWS, shrink=16)


@pytest.fixture
def own_set(planted_set: tuple[Path, planted.Expected], tmp_path: Path) -> Path:
    """A copy of the planted set's folder."""
    return shutil.copytree(planted_set[0], tmp_path / "own", symlinks=True)
