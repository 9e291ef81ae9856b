"""What is in an ensemble file, as a dictionary and as text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from flowmc_ensembles.descriptions import StreamDescription
from flowmc_ensembles.errors import CorruptionError
from flowmc_ensembles.log_q import LogQAccuracy
from flowmc_ensembles.reader import Ensemble, Stream

__all__ = ["format_summary", "inspect"]

_VERIFY_BYTES = 67_108_864


def _acceptance(stream: Stream) -> dict[str, dict[str, float | int]]:
    """Count accepted and proposed moves of every proposal kind, all chains together."""
    if "accepted" not in stream.history_names:
        return {}
    accepted = stream.history("accepted").astype(np.float64)
    kinds = (
        stream.history("proposal_kind")
        if "proposal_kind" in stream.history_names
        else np.zeros(len(accepted), dtype=np.uint8)
    )
    rates: dict[str, dict[str, float | int]] = {}
    for kind in np.unique(kinds).tolist():
        rows = accepted[kinds == kind]
        name = stream.description.proposal_kinds.get(kind, f"kind {kind}")
        rates[name] = {"rate": float(rows.mean()), "accepted": int(rows.sum()), "proposed": int(rows.size)}
    return rates


def _checksums(stream: Stream) -> str:
    """``"ok"``, or what is wrong, after reading every configuration."""
    if not stream.n_configurations:
        return "ok"
    try:
        row = stream.configurations(stop=1)
        step = max(1, _VERIFY_BYTES // max(1, row.nbytes))
        for start in range(0, stream.n_configurations, step):
            stream.configurations(start=start, stop=start + step)
    except CorruptionError as error:
        return error.got
    return "ok"


def _late_attributes(stream: Stream) -> dict[str, object]:
    """Attributes that were set after creation, such as what adaptation arrived at."""
    known = {*StreamDescription.reserved_attributes(), "finished", "stop_reason"}
    return {name: value for name, value in stream.attributes.items() if name not in known}


def _stream_summary(stream: Stream, verify: bool) -> dict[str, object]:
    description = stream.description
    trajectory = stream.trajectory
    return {
        "index": stream.index,
        "algorithm": description.algorithm,
        "algorithm_parameters": dict(description.algorithm_parameters),
        "seed": description.seed,
        "chains": description.n_chains,
        "field": description.field_name,
        "field_type": np.dtype(description.field_dtype).name,
        "configurations": stream.n_configurations,
        "updates": stream.n_updates,
        "first_trajectory": int(trajectory[0]) if len(trajectory) else None,
        "last_trajectory": int(trajectory[-1]) if len(trajectory) else None,
        "thermalisation_updates": description.thermalisation_updates,
        "freeze_update": description.freeze_update,
        "flow_sha256": description.flow_sha256,
        "parent_stream": description.parent_stream,
        "acceptance": _acceptance(stream),
        "observables": list(stream.observable_names),
        "finished": bool(stream.attributes.get("finished", False)),
        "stop_reason": str(stream.attributes.get("stop_reason", "")),
        "attributes": _late_attributes(stream),
        "resumable": stream.checkpoint() is not None,
        "checksums": _checksums(stream) if verify else "not checked",
    }


def inspect(path: str | os.PathLike[str], *, verify: bool = False) -> dict[str, object]:
    """Summary of an ensemble file; JSON types only.

    Parameters
    ----------
    path
        The file.
    verify
        Read every configuration and check its SciDAC checksum.

    Returns
    -------
    ``path, size_bytes, format_version, creator_version, created_at, theory, action, lattice_size,
    boundary_conditions, convention, log_q, certificate, checksums`` and ``streams``, a list with one dictionary each:
    ``algorithm, chains, configurations`` (of each chain), ``updates, acceptance`` (by proposal kind: ``rate, accepted,
    proposed``), ``finished, checksums, attributes`` (those set after creation) and more. ``checksums`` is ``"ok"``,
    ``"not checked"`` or says what is wrong; ``log_q`` has the fields of `LogQAccuracy`, or is ``None`` without a flow;
    ``certificate`` is the name of the flow's certificate, a hash of what it says, or ``None``.

    Raises
    ------
    MissingError, NotAnEnsembleError, TruncatedError, VersionError, CorruptionError
        If there is no readable ensemble at ``path``.
    """
    ensemble = Ensemble(path)
    streams = [_stream_summary(stream, verify) for stream in ensemble.streams]
    log_q = ensemble.description.log_q
    states = [str(stream["checksums"]) for stream in streams]
    return {
        "path": str(path),
        "size_bytes": Path(path).stat().st_size,
        "format_version": ensemble.attributes["format_version"],
        "creator_version": ensemble.attributes["creator_version"],
        "created_at": ensemble.attributes["created_at"],
        "theory": ensemble.description.theory,
        "action": dict(ensemble.description.action),
        "lattice_size": list(ensemble.description.lattice_size),
        "boundary_conditions": list(ensemble.description.boundary_conditions),
        "convention": ensemble.description.convention,
        "log_q": log_q.to_dict() if log_q else None,
        "certificate": ensemble.description.run.get("certificate_name"),
        "checksums": next((state for state in states if state != "ok"), "ok"),
        "streams": streams,
    }


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.4g} GiB"


def _stream_lines(stream: Mapping[str, object]) -> list[str]:
    parameters = cast(Mapping[str, object], stream["algorithm_parameters"])
    acceptance = cast(Mapping[str, Mapping[str, float]], stream["acceptance"])
    end = "finished" if stream["finished"] else "not finished"
    reason = f" ({stream['stop_reason']})" if stream["stop_reason"] else ""
    lines = [
        f"stream {stream['index']}: {stream['algorithm']}, {end}{reason}",
        f"  chains          {stream['chains']}",
        f"  configurations  {stream['configurations']} per chain"
        + (
            f", updates {stream['first_trajectory']} to {stream['last_trajectory']}" if stream["configurations"] else ""
        ),
        (
            f"  updates         {stream['updates']}, thermalisation {stream['thermalisation_updates']}, "
            f"adaptation frozen at {stream['freeze_update']}"
        ),
        f"  field           {stream['field']}, {stream['field_type']}",
        f"  seed            {stream['seed']}",
        f"  checkpoint      {'yes' if stream['resumable'] else 'none yet'}",
        f"  checksums       {stream['checksums']}",
    ]
    if stream["parent_stream"]:
        lines.append(f"  started from    {stream['parent_stream']}")
    if late := cast(Mapping[str, object], stream["attributes"]):
        lines.append("  set in the run  " + ", ".join(f"{name} = {value}" for name, value in late.items()))
    if parameters:
        lines.append("  parameters      " + ", ".join(f"{name} = {value}" for name, value in parameters.items()))
    lines += [
        f"  acceptance      {kind}: {rate['rate']:.4f} ({rate['accepted']} of {rate['proposed']})"
        for kind, rate in acceptance.items()
    ]
    if observables := cast(list[str], stream["observables"]):
        lines.append("  observables     " + ", ".join(observables))
    return lines


def format_summary(summary: Mapping[str, object]) -> str:
    """Text of a summary made by `inspect`, several lines without a final newline."""
    action = cast(Mapping[str, object], summary["action"])
    couplings = ", ".join(f"{name} = {value}" for name, value in action.items() if name not in {"name", "shape"})
    lattice = " x ".join(map(str, cast(list[int], summary["lattice_size"]))) or "one site"
    boundary = ", ".join(dict.fromkeys(cast(list[str], summary["boundary_conditions"])))
    lines = [
        str(summary["path"]),
        f"  theory          {summary['theory']}" + (f" ({couplings})" if couplings else ""),
        f"  convention      {summary['convention']}",
        f"  lattice         {lattice}" + (f", {boundary}" if boundary else ""),
        f"  size on disk    {_size(cast(int, summary['size_bytes']))}",
        f"  format          {summary['format_version']}, flowmc {summary['creator_version']}, {summary['created_at']}",
    ]
    if log_q := LogQAccuracy.of_certificate(summary):
        lines.append(f"  flow            {log_q}")
    if certificate := summary["certificate"]:
        lines.append(f"  certificate     {certificate}")
    for stream in cast(list[Mapping[str, object]], summary["streams"]):
        lines += _stream_lines(stream)
    return "\n".join(lines)
