"""A small ensemble to play with, and the blocks it is made of."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmc_ensembles import EnsembleDescription, EnsembleWriter, StreamDescription

_SCRIPT = Path(__file__).with_name("append_forever.py")
_HELPERS = runpy.run_path(str(_SCRIPT))


@pytest.fixture
def append_forever() -> Path:
    return _SCRIPT


@pytest.fixture
def block() -> Callable[[int], dict[str, Any]]:
    """Block ``number`` of a run: 4 rows of history, 4 configurations of 3 chains on a 4 x 6 lattice."""
    made: Callable[[int], dict[str, Any]] = _HELPERS["block"]
    return made


@pytest.fixture
def descriptions() -> tuple[EnsembleDescription, StreamDescription]:
    made: tuple[EnsembleDescription, StreamDescription] = _HELPERS["descriptions"]()
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "phi4.h5"


@pytest.fixture
def writer(path: Path, descriptions: tuple[EnsembleDescription, StreamDescription]) -> Iterator[EnsembleWriter]:
    """Writer of a new ensemble at ``path``."""
    with EnsembleWriter.create(path, *descriptions) as made:
        yield made


@pytest.fixture
def filled(writer: EnsembleWriter, block: Callable[[int], dict[str, Any]], path: Path) -> Path:
    """A closed ensemble with three blocks."""
    for number in range(3):
        writer.append(**block(number))
    writer.close()
    return path
