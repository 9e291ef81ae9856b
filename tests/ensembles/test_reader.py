from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from flowmc_ensembles import (
    CorruptionError,
    Ensemble,
    EnsembleError,
    EnsembleWriter,
    MissingError,
    NotAnEnsembleError,
    TruncatedError,
    VersionError,
    inspect,
)
from flowmc_ensembles.journal import Journal

Blocks = Callable[[int], dict[str, Any]]

OPENERS: dict[str, Callable[[Path], object]] = {
    "reader": Ensemble,
    "writer": EnsembleWriter.open,
    "inspect": inspect,
}


def refuse(open_it: Callable[[Path], object], path: Path, error: type[EnsembleError]) -> None:
    """``open_it`` raises ``error``, typed and complete, and leaves the folder as it was."""
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    with pytest.raises(error) as caught:
        open_it(path)
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.fix
    assert str(path) in caught.value.got
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("opener", OPENERS)
class TestBadInput:
    def test_missing(self, opener: str, path: Path) -> None:
        refuse(OPENERS[opener], path, MissingError)
        refuse(OPENERS[opener], path.parent, MissingError)

    def test_truncated(self, opener: str, filled: Path) -> None:
        whole = filled.read_bytes()
        for length in (0, 5, 8, 50, 95, 96, 800, 4096, len(whole) // 2, len(whole) - 1):
            filled.write_bytes(whole[:length])
            refuse(OPENERS[opener], filled, TruncatedError)

    def test_not_hdf5(self, opener: str, path: Path, rng: np.random.Generator) -> None:
        for content in (b"not an HDF5 file", rng.bytes(5000), bytes(5000)):
            path.write_bytes(content)
            refuse(OPENERS[opener], path, NotAnEnsembleError)

    def test_hdf5_of_another_kind(self, opener: str, path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["data"] = np.arange(3)
        refuse(OPENERS[opener], path, NotAnEnsembleError)

    @pytest.mark.parametrize("version", ["1.1", "2.0", "99.0"])
    def test_newer_format(self, opener: str, filled: Path, version: str) -> None:
        with h5py.File(filled, "r+") as file:
            file.attrs["format_version"] = version
        refuse(OPENERS[opener], filled, VersionError)

    def test_damaged_header(self, opener: str, filled: Path) -> None:
        with h5py.File(filled, "r+") as file:
            file.attrs["action_json"] = "{"
        with pytest.raises(CorruptionError):
            OPENERS[opener](filled)
        with h5py.File(filled, "r+") as file:
            del file.attrs["action_json"]
        with pytest.raises(CorruptionError):
            OPENERS[opener](filled)


def test_unknown_names(filled: Path) -> None:
    stream = Ensemble(filled).streams[0]
    for read in (stream.configurations, stream.history, stream.observable):
        with pytest.raises(MissingError, match="one of"):
            read("nothing")


def test_changed_configuration_is_named(filled: Path) -> None:
    with h5py.File(filled, "r+") as file:
        file["stream_0000/configurations/phi"][9, 2, 1, 1] += 1e-9
    stream = Ensemble(filled).streams[0]
    with pytest.raises(CorruptionError, match="stream 0, trajectory 9, chain 2"):
        stream.configurations()
    assert stream.configurations(verify=False).shape == (12, 3, 4, 6)
    assert stream.configurations(stop=9).shape == (9, 3, 4, 6)


@pytest.mark.parametrize("name", ["configurations/phi", "history/log_weight", "observables/virial"])
def test_changed_byte_on_the_disk_is_seen(filled: Path, name: str) -> None:
    """Fletcher-32 guards every table."""
    with h5py.File(filled, "r") as file:
        chunk = file[f"stream_0000/{name}"].id.get_chunk_info(0)
    content = bytearray(filled.read_bytes())
    content[chunk.byte_offset + 3] ^= 0x10
    filled.write_bytes(content)
    stream = Ensemble(filled).streams[0]
    table, column = name.split("/")
    read = {"configurations": stream.configurations, "history": stream.history, "observables": stream.observable}
    with pytest.raises(CorruptionError):
        read[table](column)


def damage_slot(path: Path, slot: str) -> None:
    with h5py.File(path, "r+") as file:
        file[f"stream_0000/checkpoints/{slot}/field"][0, 0, 0] += 1.0


def test_damaged_checkpoint_costs_one_block(filled: Path, block: Blocks) -> None:
    """Three blocks: slot b holds the third, slot a the second."""
    damage_slot(filled, "b")
    checkpoint = Ensemble(filled).streams[0].checkpoint()
    assert checkpoint is not None
    assert checkpoint["next_block"] == 2
    with EnsembleWriter.open(filled) as writer:
        assert writer.n_configurations == writer.n_updates == 8
        writer.append(**block(2))
    assert Ensemble(filled).streams[0].n_configurations == 12
    assert np.array_equal(Ensemble(filled).streams[0].configurations(start=8), block(2)["configurations"]["phi"])


def test_without_a_checkpoint_rows_are_not_dropped(filled: Path) -> None:
    damage_slot(filled, "a")
    damage_slot(filled, "b")
    refuse(EnsembleWriter.open, filled, CorruptionError)
    assert Ensemble(filled).streams[0].checkpoint() is None
    assert Ensemble(filled).streams[0].configurations().shape == (12, 3, 4, 6)


def test_ensemble_is_a_snapshot(writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    writer.append(**block(0))
    early = Ensemble(path).streams[0]
    writer.append(**block(1))
    assert len(early.trajectory) == len(early.configurations()) == len(early.history("action")) == 4
    assert Ensemble(path).streams[0].n_configurations == 8


def test_stale_journal_of_another_file_is_ignored(filled: Path, block: Blocks) -> None:
    """A file put in the place of one whose run was killed in the middle of a commit."""
    content = filled.read_bytes()
    pages = {0: (zlib.crc32(b"what was there"), b"something else entirely")}
    stale = Journal(size_before=len(content), size_after=len(content), pages=pages)
    filled.with_name("phi4.h5.journal").write_bytes(stale.encode())
    assert Ensemble(filled).streams[0].n_configurations == 12
    with EnsembleWriter.open(filled) as writer:
        assert filled.read_bytes() == content
        writer.append(**block(3))
    assert Ensemble(filled).streams[0].n_configurations == 16


def test_plain_h5py_reads_it(filled: Path, block: Blocks) -> None:
    with h5py.File(filled, "r") as file:
        group = file["stream_0000"]
        n = int(group["n_committed"][()])
        assert n == 12 == len(group["configurations/phi"])
        assert np.array_equal(group["configurations/phi"][8:n], block(2)["configurations"]["phi"])
        dataset = group["configurations/phi"]
        assert [dataset.dims[k].keys()[0] for k in range(4)] == ["trajectory", "chain", "t", "x"]
        assert dataset.fletcher32
        assert dataset.compression is None
        names: set[str] = set()
        file.visititems(lambda _, item: names.update(item.attrs))
        assert not names & {"shape", "dtype"}


def test_xarray_opens_it_as_a_tree(filled: Path, block: Blocks) -> None:
    with EnsembleWriter.open(filled) as writer:
        writer.set_attributes({"finished": True, "stop_reason": "done"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_datatree(filled, engine="h5netcdf") as tree:
            field = tree["stream_0000/configurations/phi"]
            assert field.dims == ("trajectory", "chain", "t", "x")
            assert np.array_equal(field.values[4:8], block(1)["configurations"]["phi"])
            assert tree["stream_0000/history/log_weight"].dims == ("update", "chain")
            assert tree["stream_0000"].attrs["finished"]
            assert np.array_equal(np.asarray(tree["stream_0000/trajectory"]), np.arange(12))
            shape = np.asarray(tree["stream_0000/observables/two_point"]).shape
            assert shape == (12, 3, 4)
