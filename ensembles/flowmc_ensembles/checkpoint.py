"""Checkpoint slots: the state to resume from, in two copies written alternately.

A slot is a group ``checkpoints/a`` or ``checkpoints/b`` with one dataset per array, the remaining values as JSON text
in the ``uint8`` dataset ``scalars_json``, and the attributes ``serial``, ``n_configurations``, ``n_updates`` (the
table lengths it belongs to) and ``crc32`` (over everything else). The valid slot with the largest serial number
counts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from flowmc_ensembles import layout, tables
from flowmc_ensembles.errors import AppendError

__all__ = ["Checkpoint", "CheckpointValue", "check_values", "newest", "write_slot"]

CheckpointValue = npt.NDArray[np.generic] | int | float | str

_SLOTS = ("a", "b")
_TEXT = "scalars_json"
# The text is padded to a multiple of this, so that it is nearly always rewritten in place.
_TEXT_GRAIN = 256


@dataclass(frozen=True)
class Checkpoint:
    """A resumable state and the table lengths it belongs to.

    Parameters
    ----------
    serial
        Number of the commit, from 1.
    n_configurations, n_updates
        Rows of the stored configurations and of the history.
    values
        The state: arrays, and Python numbers and text.
    """

    serial: int
    n_configurations: int
    n_updates: int
    values: Mapping[str, CheckpointValue]


def check_values(values: Mapping[str, object]) -> dict[str, CheckpointValue]:
    """Convert values to what will be stored: NumPy scalars become arrays without axes, the rest stays.

    Raises
    ------
    AppendError
        If a name or a type cannot be stored.
    """
    checked: dict[str, CheckpointValue] = {}
    for name, value in values.items():
        if isinstance(value, (np.ndarray, np.generic)):
            layout.check_name(name, "a checkpoint array", AppendError)
            array = np.asarray(value, order="C")
            layout.check_storable(array.dtype, f"checkpoint value {name!r}", AppendError)
            checked[name] = array
        elif isinstance(name, str) and isinstance(value, (int, float, str)):
            checked[name] = value
        else:
            raise AppendError(
                got=f"checkpoint value {name!r} of type {type(value).__name__}",
                expected="a NumPy array, an int, a float or text",
                fix="convert it with numpy.asarray, or store its parts",
            )
    return checked


def _arrays(values: Mapping[str, CheckpointValue]) -> dict[str, npt.NDArray[np.generic]]:
    return {name: value for name, value in sorted(values.items()) if isinstance(value, np.ndarray)}


def _stored_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    # HDF5 would make an enumeration of a boolean, which netCDF readers refuse.
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def _text(values: Mapping[str, CheckpointValue]) -> npt.NDArray[np.uint8]:
    scalars = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    booleans = [name for name, array in _arrays(values).items() if array.dtype.kind == "b"]
    text = json.dumps({"booleans": booleans, "scalars": scalars}, sort_keys=True).encode()
    padded = text.ljust(-(-len(text) // _TEXT_GRAIN) * _TEXT_GRAIN)
    return np.frombuffer(padded, dtype=np.uint8)


def _crc(counts: tuple[int, int, int], stored: Mapping[str, npt.NDArray[np.generic]]) -> int:
    crc = zlib.crc32(repr(counts).encode())
    for name, array in sorted(stored.items()):
        crc = zlib.crc32(repr((name, array.dtype.str, array.shape)).encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc


def write_slot(stream: h5py.Group, checkpoint: Checkpoint) -> None:
    """Write a checkpoint over the older of the two slots."""
    stored = {name: array.astype(_stored_dtype(array.dtype)) for name, array in _arrays(checkpoint.values).items()}
    stored[_TEXT] = _text(checkpoint.values)
    parent, slot = stream["checkpoints"], _SLOTS[checkpoint.serial % 2]
    group = parent.get(slot)
    datasets = None if group is None else _fitting(group, stored)
    if datasets is None:
        if group is not None:
            del parent[slot]
        group = parent.create_group(slot)
        datasets = {}
        for name, array in stored.items():
            datasets[name] = group.create_dataset(name, shape=array.shape, dtype=array.dtype)
            tables.attach_anonymous_scales(group, datasets[name], first=0)
    for name, array in stored.items():
        datasets[name][...] = array
    counts = (checkpoint.serial, checkpoint.n_configurations, checkpoint.n_updates)
    for name, value in zip(("serial", "n_configurations", "n_updates"), counts, strict=True):
        group.attrs.modify(name, np.int64(value))
    group.attrs.modify("crc32", np.uint32(_crc(counts, stored)))


def _fitting(group: h5py.Group, stored: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, h5py.Dataset] | None:
    """Datasets of a slot, if they are just those that ``stored`` needs."""
    scales = {(position, length) for array in stored.values() for position, length in enumerate(array.shape)}
    if len(group) != len(stored) + len(scales):
        return None
    datasets = {name: group.get(name) for name in stored}
    fits = all(d is not None and (d.dtype, d.shape) == (stored[n].dtype, stored[n].shape) for n, d in datasets.items())
    return datasets if fits else None


def _read_slot(group: h5py.Group) -> Checkpoint | None:
    try:
        serial, n_configurations, n_updates = (int(group.attrs[k]) for k in ("serial", "n_configurations", "n_updates"))
        stored = {name: np.asarray(d[()]) for name, d in group.items() if name == _TEXT or not d.is_scale}
        if int(group.attrs["crc32"]) != _crc((serial, n_configurations, n_updates), stored):
            return None
        text = json.loads(stored.pop(_TEXT).tobytes())
    except (OSError, RuntimeError, KeyError, ValueError):
        return None  # damaged: the other slot counts
    values: dict[str, CheckpointValue] = {**stored, **text["scalars"]}
    values.update({name: stored[name].astype(np.bool_) for name in text["booleans"]})
    return Checkpoint(serial, n_configurations, n_updates, values)


def newest(stream: h5py.Group) -> Checkpoint | None:
    """Find the newest valid checkpoint of a stream; None if there is none."""
    slots = [_read_slot(group) for group in stream["checkpoints"].values()]
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot.serial, default=None)
