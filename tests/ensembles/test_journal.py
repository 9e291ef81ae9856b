"""The overlay against a plain byte string, and the journal at every point where applying it can stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowmc_ensembles.journal import Journal, OverlayFile, write_all


@pytest.fixture
def descriptor(tmp_path: Path, rng: np.random.Generator) -> Iterator[int]:
    """A file of two and a half pages."""
    path = tmp_path / "data"
    path.write_bytes(rng.bytes(10_000))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, 1_000_000, 0)


def commit(overlay: OverlayFile, descriptor: int) -> None:
    journal = overlay.journal()
    write_all(descriptor, overlay.tail, journal.size_before)
    journal.apply(descriptor)


def test_overlay_is_a_file(descriptor: int, rng: np.random.Generator) -> None:
    model = bytearray(content(descriptor))
    for _ in range(30):
        before = content(descriptor)
        overlay = OverlayFile(descriptor)
        for _ in range(12):
            start, length = int(rng.integers(0, len(model) + 3000)), int(rng.integers(0, 9000))
            if rng.uniform() < 0.6:
                data = rng.bytes(length)
                overlay.seek(start)
                assert overlay.write(data) == length
                if length:
                    model.extend(bytes(max(0, start - len(model))))
                    model[start : start + length] = data
            elif rng.uniform() < 0.2:
                size = int(rng.integers(len(before), len(before) + 9000))
                overlay.truncate(size)
                del model[size:]
                model.extend(bytes(size - len(model)))
            overlay.seek(start)
            assert overlay.read(length) == bytes(model[start : start + length])
        assert overlay.seek(0, os.SEEK_END) == len(model)
        assert content(descriptor) == before
        commit(overlay, descriptor)
        assert content(descriptor) == bytes(model)


def test_file_can_shrink(descriptor: int) -> None:
    before = content(descriptor)
    overlay = OverlayFile(descriptor)
    overlay.seek(10)
    overlay.write(b"new")
    overlay.truncate(5000)
    commit(overlay, descriptor)
    assert content(descriptor) == before[:10] + b"new" + before[13:5000]


def changed(descriptor: int) -> tuple[Journal, bytes]:
    """A journal that changes each page, with the tail already written, and what the file will be."""
    overlay = OverlayFile(descriptor)
    for offset in (100, 5000, 9990):
        overlay.seek(offset)
        overlay.write(b"0123456789abcdef" * 2)
    journal = overlay.journal()
    write_all(descriptor, overlay.tail, journal.size_before)
    overlay.seek(0)
    return journal, overlay.read()


def test_journal_survives_the_way_through_a_file(descriptor: int) -> None:
    journal, _ = changed(descriptor)
    encoded = journal.encode()
    assert Journal.decode(encoded) == journal
    for length in (0, 10, len(encoded) // 2, len(encoded) - 1):
        assert Journal.decode(encoded[:length]) is None
    assert Journal.decode(encoded[:-1] + bytes([encoded[-1] ^ 1])) is None


@pytest.mark.parametrize("n_applied", [0, 1, 2, 3])
def test_journal_is_finished_from_wherever_it_stopped(descriptor: int, n_applied: int) -> None:
    journal, after = changed(descriptor)
    for number in sorted(journal.pages)[:n_applied]:
        write_all(descriptor, journal.pages[number][1], number * 4096)
    assert journal.belongs_to(descriptor)
    reader = OverlayFile(descriptor, journal)
    assert reader.read() == after
    journal.apply(descriptor)
    assert content(descriptor) == after
    assert journal.belongs_to(descriptor)


def test_journal_of_another_file_is_recognised(descriptor: int) -> None:
    journal, _ = changed(descriptor)
    write_all(descriptor, b"x", 4096)
    assert not journal.belongs_to(descriptor)
    os.ftruncate(descriptor, 3)
    assert not journal.belongs_to(descriptor)
