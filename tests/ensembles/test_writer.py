from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowmc_ensembles import (
    AppendError,
    DescriptionError,
    Ensemble,
    EnsembleDescription,
    EnsembleError,
    EnsembleWriter,
    ExistsError,
    LockedError,
    MissingError,
    StreamDescription,
)
from flowmc_ensembles.locks import WriterLock, journal_path

Blocks = Callable[[int], dict[str, Any]]
Descriptions = tuple[EnsembleDescription, StreamDescription]


def joined(block: Blocks, numbers: range, table: str, name: str) -> np.ndarray:
    return np.concatenate([block(number)[table][name] for number in numbers])


def assert_same_checkpoint(found: Any, expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            assert np.array_equal(found[name], value, equal_nan=value.dtype.kind in "fc")
        else:
            assert found[name] == value


def test_what_is_written_is_read_bit_for_bit(filled: Path, block: Blocks, descriptions: Descriptions) -> None:
    ensemble = Ensemble(filled)
    assert (ensemble.description, ensemble.streams[0].description) == descriptions
    stream = ensemble.streams[0]
    assert (stream.n_configurations, stream.n_updates) == (12, 12)
    numbers = range(3)
    assert np.array_equal(stream.trajectory, np.arange(12))
    assert np.array_equal(stream.configurations(), joined(block, numbers, "configurations", "phi"))
    assert np.array_equal(stream.configurations(start=3, stop=7), stream.configurations()[3:7])
    assert stream.configurations(start=5, stop=5).shape == (0, 3, 4, 6)
    assert np.array_equal(stream.configurations("action"), joined(block, numbers, "configurations", "action"))
    assert set(stream.history_names) == block(0)["history"].keys()
    for name in stream.history_names:
        expected = joined(block, numbers, "history", name)
        assert stream.history(name).dtype == expected.dtype
        assert stream.history(name).tobytes() == expected.tobytes()
    assert set(stream.observable_names) == block(0)["observables"].keys()
    for name in stream.observable_names:
        assert np.array_equal(stream.observable(name), joined(block, numbers, "observables", name))
    assert_same_checkpoint(stream.checkpoint(), block(2)["checkpoint"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.complex128])
@pytest.mark.parametrize(
    ("lattice", "internal"), [((5,), ()), ((4, 4), ("mu",)), ((2, 3, 2, 3), ("mu", "a", "b")), ((), ("k",))]
)
def test_fields_of_any_kind(
    path: Path, rng: np.random.Generator, dtype: type, lattice: tuple[int, ...], internal: tuple[str, ...]
) -> None:
    ensemble = EnsembleDescription("any", {"name": "any"}, lattice, "none")
    stream = StreamDescription(1, "hmc", {}, 2, field_name="U", field_dtype=np.dtype(dtype), internal_axes=internal)
    fields: np.ndarray = (10 * rng.normal(size=(3, 2, *lattice, *(2 for _ in internal)))).astype(dtype)
    with EnsembleWriter.create(path, ensemble, stream) as writer:
        writer.append(
            trajectory=np.arange(3),
            configurations={"U": fields, "action": np.zeros((3, 2))},
            history={},
            observables={},
            checkpoint={},
        )
    read = Ensemble(path).streams[0].configurations()
    assert read.dtype == fields.dtype
    assert np.array_equal(read, fields)


def test_tables_grow_independently(writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    """Thermalisation has history without configurations; a block may store configurations without history."""
    nothing: dict[str, Any] = {"trajectory": np.arange(0), "configurations": {}, "observables": {}}
    writer.append(**{**block(0), **nothing})
    writer.append(**block(1))
    writer.append(**{**block(2), "trajectory": np.array([9, 11, 13, 15]), "history": {}})
    stream = Ensemble(path).streams[0]
    assert (stream.n_configurations, stream.n_updates) == (8, 8) == (writer.n_configurations, writer.n_updates)
    assert stream.trajectory.tolist() == [4, 5, 6, 7, 9, 11, 13, 15]
    assert stream.history("update").tolist() == list(range(8))


def test_resume_goes_on_where_it_stopped(filled: Path, block: Blocks) -> None:
    with EnsembleWriter.open(filled) as writer:
        assert (writer.n_configurations, writer.n_updates) == (12, 12)
        assert_same_checkpoint(writer.checkpoint(), block(2)["checkpoint"])
        writer.append(**block(3))
    assert np.array_equal(
        Ensemble(filled).streams[0].configurations(), joined(block, range(4), "configurations", "phi")
    )


def test_empty_ensemble_resumes_at_the_beginning(writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    writer.close()
    assert Ensemble(path).streams[0].checkpoint() is None
    with EnsembleWriter.open(path) as again:
        assert again.checkpoint() is None
        again.append(**block(0))
    assert Ensemble(path).streams[0].n_configurations == 4


def test_checkpoints_keep_every_type(writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    values: dict[str, Any] = {
        "half": np.arange(3, dtype=np.float16),
        "big_endian": np.arange(3, dtype=">i4"),
        "complex": np.array([1 + 2j, np.nan]),
        "none": np.zeros((0, 3), dtype=np.float32),
        "scalar": np.array(2.5),
        "truth": np.array([[True, False]]),
        "state": 2**127 + 1,
        "tiny": 5e-324,
        "infinite": float("inf"),
        "flag": True,
        "text": "φ⁴ " * 1000,
        "x": 3,
    }
    for number in range(3):
        writer.append(**{**block(number), "checkpoint": values})
        assert_same_checkpoint(Ensemble(path).streams[0].checkpoint(), values)
    # A checkpoint may change its shape from block to block.
    writer.append(**{**block(3), "checkpoint": {"half": np.arange(5)}})
    writer.append(**{**block(4), "checkpoint": {}})
    assert Ensemble(path).streams[0].checkpoint() == {}
    writer.close()
    with EnsembleWriter.open(path) as again:
        assert again.checkpoint() == {}


def test_further_streams(filled: Path, block: Blocks, descriptions: Descriptions) -> None:
    other = dataclasses.replace(descriptions[1], seed=5, algorithm="hmc", parent_stream="uri#stream_0000@11")
    with EnsembleWriter.add_stream(filled, other) as writer:
        assert writer.stream_index == 1
        writer.append(**block(7))
    ensemble = Ensemble(filled)
    assert [stream.description.seed for stream in ensemble.streams] == [2**64 - 1, 5]
    assert [stream.n_configurations for stream in ensemble.streams] == [12, 4]
    with EnsembleWriter.open(filled, stream_index=1) as writer:
        assert writer.stream == other
    with pytest.raises(MissingError, match="stream 2"):
        EnsembleWriter.open(filled, stream_index=2)


def test_late_attributes(writer: EnsembleWriter, path: Path) -> None:
    writer.set_attributes({"finished": False, "stop_reason": ""})
    writer.set_attributes({"finished": True, "stop_reason": "wall clock", "cost": 1.5})
    attributes = Ensemble(path).streams[0].attributes
    assert (attributes["finished"], attributes["stop_reason"], attributes["cost"]) == (True, "wall clock", 1.5)
    for wrong in ({"seed": 1}, {"shape": 2}, {"dtype": "f8"}, {"a b": 1}, {"list": [1]}):
        with pytest.raises(DescriptionError):
            writer.set_attributes(wrong)  # type: ignore[arg-type]


def _changed(table: str | None = None, **columns: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(good: dict[str, Any]) -> dict[str, Any]:
        if table is None:
            return {**good, **columns}
        kept = {name: value for name, value in good[table].items() if columns.get(name, value) is not None}
        return {**good, table: {**kept, **{k: v for k, v in columns.items() if v is not None}}}

    return change


WRONG_BLOCKS = {
    "field of another lattice": _changed("configurations", phi=np.zeros((4, 3, 6, 4))),
    "field without chains": _changed("configurations", phi=np.zeros((4, 4, 6))),
    "field of another type": _changed("configurations", phi=np.zeros((4, 3, 4, 6), np.float32)),
    "too few configurations": _changed("configurations", phi=np.zeros((3, 3, 4, 6))),
    "too many chains": _changed("configurations", phi=np.zeros((4, 4, 4, 6))),
    "no field": _changed("configurations", phi=None),
    "no action": _changed("configurations", action=None),
    "action in single precision": _changed("configurations", action=np.zeros((4, 3), np.float32)),
    "unknown configuration column": _changed("configurations", extra=np.zeros((4, 3))),
    "reserved column": _changed("configurations", crc_suma=np.zeros((4, 3))),
    "trajectory repeated": _changed(trajectory=np.arange(8, 12)),
    "trajectory decreasing": _changed(trajectory=np.array([14, 13, 15, 16])),
    "trajectory of floats": _changed(trajectory=np.arange(12.0, 16.0)),
    "trajectory too short": _changed(trajectory=np.arange(12, 14)),
    "trajectory of two axes": _changed(trajectory=np.arange(12, 16)[:, None]),
    "history without update": _changed("history", update=None),
    "history repeated": _changed("history", update=np.arange(8, 12)),
    "history with another column": _changed("history", energy=np.zeros(4)),
    "history without a column": _changed("history", walltime=None),
    "history of other chains": _changed("history", delta_H=np.zeros((4, 2))),
    "history of other length": _changed("history", delta_H=np.zeros((5, 3))),
    "acceptance as booleans": _changed("history", accepted=np.ones((4, 3), bool)),
    "acceptance of two": _changed("history", accepted=np.full((4, 3), 2, np.uint8)),
    "unknown proposal kind": _changed("history", proposal_kind=np.full(4, 9, np.uint8)),
    "weights in single precision": _changed("history", log_weight=np.zeros((4, 3), np.float32)),
    "objects": _changed("observables", virial=np.full((4, 3), None)),
    "observable of other chains": _changed("observables", virial=np.zeros((4, 2))),
    "observable of other extent": _changed("observables", two_point=np.zeros((4, 3, 5))),
    "observable missing": _changed("observables", virial=None),
    "no observables": _changed(observables={}),
    "checkpoint of a list": _changed("checkpoint", field=[1, 2]),
    "checkpoint of text arrays": _changed("checkpoint", field=np.array(["a"])),
    "checkpoint array with a path for a name": _changed("checkpoint", **{"a/b": np.zeros(2)}),
}


@pytest.mark.parametrize("wrong", WRONG_BLOCKS)
def test_wrong_blocks_are_refused_whole(wrong: str, writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    for number in range(3):
        writer.append(**block(number))
    before = path.read_bytes()
    with pytest.raises(AppendError, match=r"(?s)got: .*expected: .*fix: "):
        writer.append(**WRONG_BLOCKS[wrong](block(3)))
    assert path.read_bytes() == before
    writer.append(**block(3))
    assert Ensemble(path).streams[0].n_configurations == 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"lattice_size": (4, 0)},
        {"boundary_conditions": ("periodic",)},
        {"action": {"object": object()}},
        {"run": {"loss": float("nan")}},
        {"run": {"long": "x" * 70_000}},
    ],
)
def test_wrong_ensemble_descriptions(wrong: dict[str, Any], descriptions: Descriptions) -> None:
    with pytest.raises(DescriptionError):
        dataclasses.replace(descriptions[0], **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"n_chains": 0},
        {"field_name": "trajectory"},
        {"field_name": "a/b"},
        {"field_dtype": np.dtype(object)},
        {"proposal_kinds": {256: "too many"}},
        {"internal_axes": ("t",)},
    ],
)
def test_wrong_stream_descriptions(wrong: dict[str, Any], descriptions: Descriptions) -> None:
    with pytest.raises(DescriptionError):
        dataclasses.replace(descriptions[1], **wrong)


def test_existing_files_are_not_overwritten(tmp_path: Path, descriptions: Descriptions) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"data")
    link = tmp_path / "dangling"
    link.symlink_to(tmp_path / "nowhere")
    for path in (target, link, tmp_path):
        with pytest.raises(ExistsError, match=r"EnsembleWriter\.open"):
            EnsembleWriter.create(path, *descriptions)
    assert target.read_bytes() == b"data"
    with pytest.raises(MissingError, match="folder"):
        EnsembleWriter.create(tmp_path / "no" / "folder.h5", *descriptions)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "precious"]


def test_a_writer_leaves_nothing_but_the_file(filled: Path) -> None:
    assert [p.name for p in filled.parent.iterdir()] == [filled.name]


def test_second_writer_is_refused(
    writer: EnsembleWriter, block: Blocks, path: Path, descriptions: Descriptions
) -> None:
    writer.append(**block(0))
    alias = path.with_name("alias.h5")
    alias.symlink_to(path)
    before = path.read_bytes()
    for name in (path, alias):
        with pytest.raises(LockedError, match="another writer"):
            EnsembleWriter.open(name)
    with pytest.raises(LockedError, match="another writer"):
        EnsembleWriter.add_stream(path, descriptions[1])
    assert path.read_bytes() == before
    writer.append(**block(1))
    writer.close()
    EnsembleWriter.open(path).close()


def test_lock_goes_with_a_forgotten_writer(path: Path, descriptions: Descriptions) -> None:
    EnsembleWriter.create(path, *descriptions)
    EnsembleWriter.open(path).close()


def test_closed_writer_writes_no_more(writer: EnsembleWriter, block: Blocks, path: Path) -> None:
    writer.append(**block(0))
    writer.close()
    writer.close()
    with pytest.raises(LockedError, match="closed"):
        writer.append(**block(1))
    assert Ensemble(path).streams[0].n_configurations == 4


def test_other_program_with_the_file_open_for_writing(
    writer: EnsembleWriter, block: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmc_ensembles.transaction._PATIENCE_SECONDS", 0.05)
    writer.append(**block(0))
    writer._file._patience = 0.05
    with h5py.File(path, "r+"), pytest.raises(LockedError, match="open for writing"):
        writer.append(**block(1))
    assert Ensemble(path).streams[0].n_configurations == 4 == writer.n_configurations
    writer.append(**block(1))
    with h5py.File(path, "r") as reader:  # a reader is waited for, but does not stop a run
        writer.append(**block(2))
        assert reader["stream_0000/n_committed"][()] in {8, 12}
    assert Ensemble(path).streams[0].n_configurations == 12


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(AppendError(got="a", expected="b", fix="c")))
    assert type(error) is AppendError
    assert isinstance(error, EnsembleError)
    assert str(error) == "got: a\nexpected: b\nfix: c"


def test_forked_child_does_not_remove_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = WriterLock(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)
        lock.release()
    assert journal_path(path).exists()
    WriterLock(path).release()
    assert not journal_path(path).exists()
