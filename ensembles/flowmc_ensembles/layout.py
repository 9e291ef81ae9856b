"""The layout of an ensemble file: names, versions, column types and attributes.

One HDF5 file per ensemble, streams (independent runs of many chains) inside::

    /                     attributes: what was simulated (QCDml 2.0 names where QCDml has one)
    /t /z /y /x           lattice axes, dimension scales (those that exist; t slowest, x fastest)
    /stream_0000/         attributes: how it was simulated
        n_committed       number of stored configurations
        trajectory        (n,) update number of each stored configuration, dimension scale
        chain             (chain,) dimension scale
        configurations/   <field> (n, chain, *lattice, *internal), action (n, chain), crc_suma, crc_sumb (n, chain)
        observables/      <name> (n, chain, ...) measured in the run
        history/          n_committed, update (m,) dimension scale, <name> (m,) or (m, chain)
        checkpoints/a, b  the state to resume from, written alternately

Text is kept in attributes; nothing is pickled; no attribute is called ``shape`` or ``dtype`` (other lattice software
gives these a meaning). Field data are not compressed (real lattice fields do not shrink); every table carries
Fletcher-32.

References
----------
.. [1] The International Lattice Data Grid metadata schema QCDml 2.0, arXiv:2212.08392.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping

import h5py
import numpy as np

from flowmc_ensembles.errors import (
    CorruptionError,
    DescriptionError,
    EnsembleError,
    MissingError,
    NotAnEnsembleError,
    VersionError,
)

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "HISTORY_DTYPES",
    "attributes_of",
    "axis_names",
    "check_header",
    "check_name",
    "check_storable",
    "creator_version",
    "from_json",
    "stream_group",
    "stream_name",
    "to_json",
]

FORMAT = "flowmc-ensemble"
FORMAT_VERSION = (1, 0)

# Types of the history columns whose meaning is fixed; other columns keep the type of their first block.
HISTORY_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "update": np.dtype(np.int64),
    "proposal_kind": np.dtype(np.uint8),
    "accepted": np.dtype(np.uint8),
    "delta_H": np.dtype(np.float64),
    "log_weight": np.dtype(np.float64),
    "log_weight_current": np.dtype(np.float64),
    "action": np.dtype(np.float64),
    "walltime": np.dtype(np.float64),
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
# Dimension scales and the writer's own datasets live beside the user's columns.
_RESERVED = re.compile(
    r"t|x\d*|y|z|chain|trajectory|n_committed|crc_suma|crc_sumb|scalars_json|axis\d+_\d+"
    r"|configurations|history|observables|checkpoints"
)
_SPATIAL = ("x", "y", "z")
# HDF5 keeps attributes in object headers, whose messages are limited to 64 KiB.
_LONGEST_TEXT = 60_000


def creator_version() -> str:
    """Version of the installed distribution, or a plain statement that there is none."""
    try:
        return importlib.metadata.version("flowmc-lattice")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def axis_names(n_axes: int) -> tuple[str, ...]:
    """Names of the lattice axes, slowest first: ``t`` and then the spatial ones down to ``x``.

    Examples
    --------
    >>> axis_names(2), axis_names(4)
    (('t', 'x'), ('t', 'z', 'y', 'x'))
    """
    if n_axes == 0:
        return ()
    spatial = [_SPATIAL[k] if k < len(_SPATIAL) else f"x{k + 1}" for k in range(n_axes - 1)]
    return ("t", *reversed(spatial))


def stream_name(index: int) -> str:
    """Name of the group of stream ``index``."""
    return f"stream_{index:04d}"


def check_name(
    name: str,
    what: str,
    error: type[EnsembleError] = DescriptionError,
    taken: re.Pattern[str] | frozenset[str] = _RESERVED,
) -> None:
    """Refuse names that are no plain identifiers, or that are taken (by default: by the layout itself).

    Raises
    ------
    DescriptionError
        (or ``error``) if ``name`` cannot be used for ``what``.
    """
    is_taken = name in taken if isinstance(taken, frozenset) else taken.fullmatch(str(name))
    if not isinstance(name, str) or not _NAME.fullmatch(name) or is_taken:
        raise error(
            got=f"{what} called {name!r}",
            expected="letters, digits, '_', '-', '.', beginning with a letter, and no name that is taken",
            fix="rename it",
        )


def check_storable(dtype: np.dtype[np.generic], what: str, error: type[EnsembleError] = DescriptionError) -> None:
    """Refuse types that have no plain HDF5 counterpart (objects, text, records, extended precision).

    Raises
    ------
    DescriptionError
        (or ``error``) if values of ``dtype`` cannot be stored for ``what``.
    """
    sizes = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
    if dtype.itemsize not in sizes.get(dtype.kind, ()):
        raise error(
            got=f"{what} of type {dtype}",
            expected="booleans, integers, floats of 16 to 64 bits or complex numbers of 64 or 128 bits",
            fix="convert it before storing",
        )


def to_json(value: object, what: str) -> str:
    """JSON text of a description, keys sorted.

    Raises
    ------
    DescriptionError
        If ``value`` is not made of JSON types and finite numbers, or the text is too long for an HDF5 attribute.
    """
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DescriptionError(
            got=f"{what} that is not JSON: {error}",
            expected="dicts with text keys, lists, text, booleans, None, ints and finite floats",
            fix="convert arrays with .tolist() and NumPy numbers with .item(); write what is not finite as text",
        ) from error
    if len(text.encode()) > _LONGEST_TEXT:
        raise DescriptionError(
            got=f"{what} of {len(text.encode())} bytes",
            expected=f"at most {_LONGEST_TEXT} bytes, the limit of HDF5 attributes",
            fix="store a hash and keep the long text in a file of its own",
        )
    return text


def from_json(text: object, what: str) -> object:
    """Value of a JSON attribute.

    Raises
    ------
    CorruptionError
        If ``text`` is not JSON.
    """
    try:
        return json.loads(str(text))
    except json.JSONDecodeError as error:
        raise CorruptionError(
            got=f"attribute {what} that is not JSON: {error}",
            expected="the JSON text written at creation",
            fix="restore the file from a copy",
        ) from error


def attributes_of(group: h5py.Group) -> dict[str, object]:
    """Attributes as plain Python values (NumPy scalars and arrays converted)."""
    plain: dict[str, object] = {}
    for name, value in group.attrs.items():
        if isinstance(value, np.ndarray):
            plain[name] = value.tolist()
        elif isinstance(value, np.generic):
            plain[name] = value.item()
        else:
            plain[name] = value
    return plain


def check_header(file: h5py.File, path: str) -> None:
    """Refuse HDF5 files of another kind, and ensembles of a newer format.

    Raises
    ------
    NotAnEnsembleError
        If the root attributes do not say that this is an ensemble.
    VersionError
        If the format is newer than this release.
    """
    found = file.attrs.get("format")
    if found != FORMAT:
        raise NotAnEnsembleError(
            got=f"{path}: an HDF5 file whose attribute 'format' is {found!r}",
            expected=f"'format' = {FORMAT!r}",
            fix="give the path of a file written by flowmc",
        )
    version = str(file.attrs.get("format_version"))
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    if match is None:
        raise CorruptionError(
            got=f"{path}: format_version {version!r}",
            expected="'major.minor'",
            fix="restore the file from a copy",
        )
    if (int(match[1]), int(match[2])) > FORMAT_VERSION:
        raise VersionError(
            got=f"{path}: ensemble format {version}, written by flowmc {file.attrs.get('creator_version')}",
            expected=f"at most {'.'.join(map(str, FORMAT_VERSION))}, the format of this release",
            fix="update flowmc-lattice",
        )


def stream_group(file: h5py.File, index: int, path: str) -> h5py.Group:
    """Group of stream ``index``.

    Raises
    ------
    MissingError
        If the file has no such stream.
    """
    name = stream_name(index)
    if name not in file:
        present = sorted(key for key in file if key.startswith("stream_"))
        raise MissingError(
            got=f"stream {index} of {path}",
            expected=f"one of {present}",
            fix="give the number of a stream that exists, or add one with EnsembleWriter.add_stream",
        )
    return file[name]
