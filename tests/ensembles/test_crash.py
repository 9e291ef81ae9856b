"""A process that ends at any instant leaves the last committed block: at every system call, by SIGKILL, by exceptions."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowmc_ensembles import Ensemble, EnsembleDescription, EnsembleWriter, LockedError, StreamDescription
from flowmc_ensembles.journal import OverlayFile

Blocks = Callable[[int], dict[str, Any]]
Descriptions = tuple[EnsembleDescription, StreamDescription]
TIMES = {"created_at", "started_at"}


def contents(path: Path) -> dict[str, Any]:
    """Everything in a file but its time stamps."""
    found: dict[str, Any] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        internal = {"DIMENSION_LIST", "REFERENCE_LIST"}
        found[name] = {k: np.asarray(v).tolist() for k, v in item.attrs.items() if k not in TIMES | internal}
        if isinstance(item, h5py.Dataset):
            data = np.asarray(item[()])
            found[name]["content"] = (data.dtype.str, data.shape, data.tobytes())

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def assert_is_run_of(path: Path, n_blocks: int, block: Blocks) -> None:
    """The file reads as a run of ``n_blocks`` blocks."""
    stream = Ensemble(path).streams[0]
    assert stream.n_configurations == stream.n_updates == 4 * n_blocks
    if n_blocks:
        expected = np.concatenate([block(number)["configurations"]["phi"] for number in range(n_blocks)])
        assert np.array_equal(stream.configurations(), expected)
        weights = np.concatenate([block(number)["history"]["log_weight"] for number in range(n_blocks)])
        assert np.array_equal(stream.history("log_weight"), weights)
        checkpoint = stream.checkpoint()
        assert checkpoint is not None
        assert checkpoint["next_block"] == n_blocks


@pytest.mark.parametrize("n_before", [0, 2])
def test_every_system_call(
    n_before: int, writer: EnsembleWriter, block: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the disk before, in the middle of, and after each call that changes it resumes at a block boundary."""
    for number in range(n_before):
        writer.append(**block(number))
    moments: list[Path] = []
    true_pwrite, true_ftruncate = os.pwrite, os.ftruncate

    def keep() -> None:
        moment = tmp_path / f"moment{len(moments)}"
        moment.mkdir()
        for file in tmp_path.glob("phi4.h5*"):
            shutil.copy(file, moment)
        moments.append(moment / "phi4.h5")

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        # The kernel copies page by page, and SIGKILL can come between two of them: every sixth such point.
        for done in range(0, len(data), 6 * 4096):
            true_pwrite(descriptor, data[:done], offset)
            keep()
        return true_pwrite(descriptor, data, offset)

    def ftruncate(descriptor: int, length: int) -> None:
        keep()
        true_ftruncate(descriptor, length)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "ftruncate", ftruncate)
        writer.append(**block(n_before))
    keep()
    outcomes = []
    for moment in moments:
        before = moment.read_bytes()
        n_blocks = Ensemble(moment).streams[0].n_configurations // 4
        assert_is_run_of(moment, n_blocks, block)
        assert moment.read_bytes() == before
        with EnsembleWriter.open(moment) as resumed:
            assert resumed.n_configurations == 4 * n_blocks == resumed.n_updates
        assert_is_run_of(moment, n_blocks, block)
        assert not moment.with_name("phi4.h5.journal").exists()
        outcomes.append(n_blocks)
    # The block appears at one moment, and once there it stays.
    assert outcomes == sorted(outcomes)
    assert {outcomes[0], outcomes[-1]} == {n_before, n_before + 1}


def test_kill(
    path: Path,
    tmp_path: Path,
    append_forever: Path,
    block: Blocks,
    descriptions: Descriptions,
    rng: np.random.Generator,
) -> None:
    """Killed again and again while it appends, a run ends up with the content of an uninterrupted one."""
    EnsembleWriter.create(path, *descriptions).close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    n_blocks = 0
    for _ in range(5):
        command = [sys.executable, str(append_forever), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            assert select.select([child.stdout], [], [], 60)[0]
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.15))
            child.send_signal(signal.SIGKILL)
        n_now = Ensemble(path).streams[0].n_configurations // 4
        assert n_now >= n_blocks
        n_blocks = n_now
        assert_is_run_of(path, n_blocks, block)
    with EnsembleWriter.open(path) as writer:  # no lock is left behind
        writer.append(**block(n_blocks))
    uninterrupted = tmp_path / "uninterrupted.h5"
    with EnsembleWriter.create(uninterrupted, *descriptions) as writer:
        for number in range(n_blocks + 1):
            writer.append(**block(number))
    assert contents(path) == contents(uninterrupted)


def test_failing_callbacks_of_hdf5(
    writer: EnsembleWriter, block: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write of HDF5 fails, even one whose exception it would swallow, the file stays as it was."""
    writer.append(**block(0))
    before = path.read_bytes()
    true_write = OverlayFile._write
    for n_good in range(0, 200, 7):
        calls = iter(range(200))

        def write(overlay: OverlayFile, data: memoryview, calls: Any = calls, n_good: int = n_good) -> int:
            if next(calls) == n_good:
                raise MemoryError
            return true_write(overlay, data)

        monkeypatch.setattr(OverlayFile, "_write", write)
        try:
            writer.append(**block(1))
        except MemoryError:
            assert path.read_bytes() == before
            assert writer.n_configurations == 4
        else:
            break
    monkeypatch.undo()
    assert n_good > 10
    assert_is_run_of(path, 2, block)
    writer.append(**block(2))
    assert_is_run_of(path, 3, block)


@pytest.mark.parametrize("n_good", [0, 1, 2])
def test_full_disk(
    n_good: int, writer: EnsembleWriter, block: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails before the journal is whole undoes the block, a later one is tried again; the run can go on."""
    writer.append(**block(0))
    true_pwrite = os.pwrite
    calls = iter(range(10_000))

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) == n_good:
            true_pwrite(descriptor, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return true_pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space") if n_good < 2 else contextlib.nullcontext():
            writer.append(**block(1))
    assert next(calls) > n_good
    n_blocks = writer.n_configurations // 4
    assert n_blocks == (1 if n_good < 2 else 2)
    assert_is_run_of(path, n_blocks, block)
    writer.append(**block(n_blocks))
    assert_is_run_of(path, n_blocks + 1, block)


def test_signals_wait_for_the_commit(
    writer: EnsembleWriter, block: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_write = OverlayFile._write

    def write(overlay: OverlayFile, data: memoryview) -> int:
        if not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)
        return true_write(overlay, data)

    monkeypatch.setattr(OverlayFile, "_write", write)
    for number in range(3):
        sent: list[bool] = []
        with pytest.raises(KeyboardInterrupt):
            writer.append(**block(number))
        assert writer.n_configurations == 4 * (number + 1)
        assert_is_run_of(path, number + 1, block)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_readers_during_a_run(path: Path, append_forever: Path, block: Blocks, descriptions: Descriptions) -> None:
    """A reader sees whole blocks only, while another process appends as fast as it can."""
    EnsembleWriter.create(path, *descriptions).close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(append_forever), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            seen = [0]
            deadline = time.monotonic() + 30
            while (len(seen) < 12 or seen[-1] == 0) and time.monotonic() < deadline:
                n_blocks = Ensemble(path).streams[0].n_configurations // 4
                seen.append(n_blocks)
                ensemble = Ensemble(path).streams[0]
                assert ensemble.n_configurations % 4 == 0
                if ensemble.n_configurations:
                    first = block(0)["configurations"]["phi"]
                    assert np.array_equal(ensemble.configurations()[:4], first)
                    assert len(ensemble.history("log_weight")) == ensemble.n_updates
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    assert seen == sorted(seen)
    assert seen[-1] > 0


def test_disk_that_stays_broken_in_the_middle_of_a_commit(
    writer: EnsembleWriter, block: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer gives up; readers see the block (its journal is whole), and so does the next writer."""
    writer.append(**block(0))
    true_pwrite = os.pwrite
    calls = iter(range(10_000))

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) >= 2:
            raise OSError(5, "Input/output error")
        return true_pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="Input/output"):
            writer.append(**block(1))
    with pytest.raises(LockedError, match="closed"):
        writer.append(**block(1))
    assert_is_run_of(path, 2, block)
    with EnsembleWriter.open(path) as again:
        again.append(**block(2))
    assert_is_run_of(path, 3, block)
