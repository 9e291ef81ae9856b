"""What an ensemble and a stream say about themselves: frozen records kept as HDF5 attributes.

Attribute names follow QCDml 2.0 where it has a word (``markov_chain_uri``, ``series``, ``precision``,
``collaboration``, ``project_name``, ``license_uri``). What has structure is JSON text in one attribute.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import h5py
import numpy as np

from flowmc_ensembles import layout
from flowmc_ensembles.errors import CorruptionError, DescriptionError
from flowmc_ensembles.log_q import LogQAccuracy

__all__ = ["EnsembleDescription", "StreamDescription"]

_PRECISION = {2: "half", 4: "single", 8: "double"}


def _as_json(value: object, what: str) -> object:
    """Pass through JSON and back (tuples become lists), so that a description equals its stored self."""
    return layout.from_json(layout.to_json(value, what), what)


def _require(attributes: Mapping[str, object], name: str) -> object:
    if name not in attributes:
        raise CorruptionError(
            got=f"no attribute {name!r}",
            expected="every attribute written at creation",
            fix="restore the file from a copy",
        )
    return attributes[name]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _text_array(names: tuple[str, ...]) -> np.ndarray:
    return np.array(names, dtype=h5py.string_dtype())


@dataclass(frozen=True)
class EnsembleDescription:
    """What was simulated: the root attributes of an ensemble.

    Parameters
    ----------
    theory
        Short name, for example ``"phi4"``.
    action
        The theory's own description with its name, lattice and couplings; JSON types.
    lattice_size
        Extents in sites, slowest axis (t) first; empty for a theory on a single site.
    convention
        Normalisation of the action, as text.
    boundary_conditions
        One word per lattice axis; empty means periodic in every direction.
    collaboration, project_name, license_uri, markov_chain_uri
        QCDml 2.0 management data, text.
    run
        Anything about the run that produced the ensemble (configuration, versions, flow fingerprint, training time in
        seconds, certificate of the flow); JSON types.

    Raises
    ------
    DescriptionError
        If an extent is not positive, the numbers of extents and boundary conditions differ, or a mapping is not JSON.
    """

    theory: str
    action: Mapping[str, object]
    lattice_size: tuple[int, ...]
    convention: str
    boundary_conditions: tuple[str, ...] = ()
    collaboration: str = ""
    project_name: str = ""
    license_uri: str = ""
    markov_chain_uri: str = ""
    run: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = tuple(int(extent) for extent in self.lattice_size)
        boundary = tuple(self.boundary_conditions) or ("periodic",) * len(size)
        if any(extent < 1 for extent in size) or len(boundary) != len(size):
            raise DescriptionError(
                got=f"lattice_size {self.lattice_size} with boundary_conditions {self.boundary_conditions}",
                expected="positive extents and one boundary condition per axis",
                fix="give both in the same order, t first",
            )
        object.__setattr__(self, "lattice_size", size)
        object.__setattr__(self, "boundary_conditions", boundary)
        object.__setattr__(self, "action", _as_json(self.action, "action"))
        object.__setattr__(self, "run", _as_json(self.run, "run"))

    @property
    def log_q(self) -> LogQAccuracy | None:
        """How exact log q of the flow is, as its certificate in ``run`` says; None without a flow, or in an old file."""
        return LogQAccuracy.of_certificate(self.run.get("certificate"))

    def write(self, file: h5py.File) -> None:
        """Write the root attributes and the lattice axes of a new file."""
        names = layout.axis_names(len(self.lattice_size))
        attributes = file.attrs
        attributes["format"] = layout.FORMAT
        attributes["format_version"] = ".".join(map(str, layout.FORMAT_VERSION))
        attributes["created_at"] = _now()
        attributes["creator"] = "flowmc"
        attributes["creator_version"] = layout.creator_version()
        attributes["theory"] = self.theory
        attributes["action_json"] = layout.to_json(self.action, "action")
        attributes["lattice_size"] = np.array(self.lattice_size, dtype=np.int64)
        attributes["axis_names"] = _text_array(names)
        attributes["boundary_conditions"] = _text_array(self.boundary_conditions)
        attributes["index_order"] = " ".join(("configuration", "chain", *names))
        attributes["convention"] = self.convention
        for name in ("collaboration", "project_name", "license_uri", "markov_chain_uri"):
            attributes[name] = getattr(self, name)
        attributes["run_json"] = layout.to_json(self.run, "run")
        for name, extent in zip(names, self.lattice_size, strict=True):
            file.create_dataset(name, data=np.arange(extent, dtype=np.int64)).make_scale(name)

    @classmethod
    def read(cls, file: h5py.File) -> EnsembleDescription:
        """Read the description of an open file."""
        attributes = layout.attributes_of(file)
        text = {
            name: str(_require(attributes, name))
            for name in ("theory", "convention", "collaboration", "project_name", "license_uri", "markov_chain_uri")
        }
        return cls(
            **text,
            action=cast(Mapping[str, object], layout.from_json(_require(attributes, "action_json"), "action_json")),
            lattice_size=tuple(cast(list[int], _require(attributes, "lattice_size"))),
            boundary_conditions=tuple(cast(list[str], _require(attributes, "boundary_conditions"))),
            run=cast(Mapping[str, object], layout.from_json(_require(attributes, "run_json"), "run_json")),
        )


@dataclass(frozen=True)
class StreamDescription:
    """How it was simulated: the attributes of one stream of ``n_chains`` chains that move together.

    Parameters
    ----------
    seed
        Run seed, from which every counter-based seed of the stream follows; 0 <= seed < 2**64.
    algorithm
        ``"hybrid"``, ``"flow"`` or ``"hmc"``.
    algorithm_parameters
        Parameters of the algorithm; JSON types.
    n_chains
        Number of chains.
    field_name
        Name of the field's column, for example ``"phi"``.
    field_dtype
        Type of the stored field: the precision of the run, so that a restart is bit-identical.
    internal_axes
        Names of the field's axes after the lattice ones, for example ``("mu",)`` for a link field.
    thermalisation_updates
        Updates discarded before the first stored configuration.
    freeze_update
        Everything adaptive stopped before this update.
    flow_sha256
        Fingerprint of the flow, empty without one.
    parent_stream
        Where the stream started, when it did from another ensemble: ``"<ensemble uri>#stream_0000@<update>"``.
    proposal_kinds
        Meaning of the history's ``proposal_kind`` numbers.

    Raises
    ------
    DescriptionError
        If a number is out of range, a name is not a plain identifier, or a mapping is not JSON.
    """

    seed: int
    algorithm: str
    algorithm_parameters: Mapping[str, object]
    n_chains: int
    field_name: str = "phi"
    field_dtype: np.dtype[np.generic] = field(default_factory=lambda: np.dtype(np.float64))
    internal_axes: tuple[str, ...] = ()
    thermalisation_updates: int = 0
    freeze_update: int = 0
    flow_sha256: str = ""
    parent_stream: str = ""
    proposal_kinds: Mapping[int, str] = field(default_factory=lambda: {0: "hmc", 1: "flow"})

    def __post_init__(self) -> None:
        layout.check_name(self.field_name, "a field")
        for name in self.internal_axes:
            layout.check_name(name, "an internal axis")
        dtype = np.dtype(self.field_dtype).newbyteorder("=")
        layout.check_storable(dtype, "a field")
        if not (0 <= self.seed < 2**64 and self.n_chains >= 1) or any(not 0 <= k < 256 for k in self.proposal_kinds):
            raise DescriptionError(
                got=f"seed {self.seed}, n_chains {self.n_chains}, proposal_kinds {dict(self.proposal_kinds)}",
                expected="0 <= seed < 2**64, at least one chain, kinds numbered 0 to 255",
                fix="correct the number that is out of range",
            )
        object.__setattr__(self, "field_dtype", dtype)
        object.__setattr__(self, "internal_axes", tuple(self.internal_axes))
        object.__setattr__(self, "proposal_kinds", {int(k): str(v) for k, v in self.proposal_kinds.items()})
        parameters = _as_json(self.algorithm_parameters, "algorithm_parameters")
        object.__setattr__(self, "algorithm_parameters", parameters)

    def write(self, group: h5py.Group, series: int) -> None:
        """Write the attributes of a new stream, the ``series``-th of its file."""
        attributes = group.attrs
        attributes["series"] = series
        attributes["seed"] = np.uint64(self.seed)
        attributes["algorithm"] = self.algorithm
        attributes["algorithm_json"] = layout.to_json(self.algorithm_parameters, "algorithm_parameters")
        attributes["n_chains"] = self.n_chains
        attributes["field"] = self.field_name
        attributes["field_type"] = self.field_dtype.name
        component = self.field_dtype.itemsize // (2 if self.field_dtype.kind == "c" else 1)
        attributes["precision"] = _PRECISION[component] if self.field_dtype.kind in "fc" else "exact"
        attributes["internal_axes"] = _text_array(self.internal_axes)
        attributes["thermalisation_updates"] = self.thermalisation_updates
        attributes["freeze_update"] = self.freeze_update
        attributes["flow_sha256"] = self.flow_sha256
        attributes["parent_stream"] = self.parent_stream
        kinds = {str(kind): name for kind, name in self.proposal_kinds.items()}
        attributes["proposal_kinds_json"] = layout.to_json(kinds, "proposal_kinds")
        attributes["started_at"] = _now()

    @classmethod
    def read(cls, group: h5py.Group) -> StreamDescription:
        """Read the description in the group of a stream."""
        attributes = layout.attributes_of(group)
        kinds = cast(
            dict[str, str], layout.from_json(_require(attributes, "proposal_kinds_json"), "proposal_kinds_json")
        )
        return cls(
            seed=cast(int, _require(attributes, "seed")),
            algorithm=str(_require(attributes, "algorithm")),
            algorithm_parameters=cast(
                Mapping[str, object], layout.from_json(_require(attributes, "algorithm_json"), "algorithm_json")
            ),
            n_chains=cast(int, _require(attributes, "n_chains")),
            field_name=str(_require(attributes, "field")),
            field_dtype=np.dtype(str(_require(attributes, "field_type"))),
            internal_axes=tuple(cast(list[str], _require(attributes, "internal_axes"))),
            thermalisation_updates=cast(int, _require(attributes, "thermalisation_updates")),
            freeze_update=cast(int, _require(attributes, "freeze_update")),
            flow_sha256=str(_require(attributes, "flow_sha256")),
            parent_stream=str(_require(attributes, "parent_stream")),
            proposal_kinds={int(kind): name for kind, name in kinds.items()},
        )

    @classmethod
    def reserved_attributes(cls) -> frozenset[str]:
        """Attribute names of a stream that later additions may not take."""
        own = {f.name for f in dataclasses.fields(cls)}
        written = {"series", "algorithm_json", "field", "field_type", "precision", "proposal_kinds_json", "started_at"}
        return frozenset(own | written | {"shape", "dtype"})
