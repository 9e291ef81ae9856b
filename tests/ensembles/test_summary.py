from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowmc_ensembles import EnsembleWriter, format_summary, inspect

Blocks = Callable[[int], dict[str, Any]]


def test_summary_tells_what_is_there(filled: Path, block: Blocks) -> None:
    with EnsembleWriter.open(filled) as writer:
        writer.set_attributes({"finished": True, "stop_reason": "all updates done"})
    summary: dict[str, Any] = inspect(filled, verify=True)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["theory"] == "phi4"
    assert summary["action"]["lam"] == 8.0
    assert summary["lattice_size"] == [4, 6]
    assert summary["size_bytes"] == filled.stat().st_size
    assert summary["checksums"] == "ok"
    (stream,) = summary["streams"]
    assert (stream["configurations"], stream["updates"], stream["chains"]) == (12, 12, 3)
    assert (stream["finished"], stream["stop_reason"]) == (True, "all updates done")
    accepted = np.concatenate([block(k)["history"]["accepted"] for k in range(3)])
    kinds = np.concatenate([block(k)["history"]["proposal_kind"] for k in range(3)])
    for kind, name in ((0, "hmc"), (1, "flow")):
        found = stream["acceptance"][name]
        assert found["rate"] == accepted[kinds == kind].mean()
        assert found["proposed"] == accepted[kinds == kind].size
    text = format_summary(summary)
    for part in ("phi4", "lam = 8.0", "4 x 6", "hybrid", "12 per chain", "finished (all updates done)", "hmc: "):
        assert part in text


def test_summary_of_an_empty_ensemble(writer: EnsembleWriter, path: Path) -> None:
    summary: dict[str, Any] = inspect(path, verify=True)
    assert summary["streams"][0]["configurations"] == 0
    assert not summary["streams"][0]["finished"]
    assert "not finished" in format_summary(summary)
    assert writer.n_updates == 0


def test_checksums_on_demand(filled: Path) -> None:
    with h5py.File(filled, "r+") as file:
        file["stream_0000/configurations/phi"][7, 1, 0, 0] = 0.0
    assert inspect(filled)["checksums"] == "not checked"
    assert "trajectory 7, chain 1" in str(inspect(filled, verify=True)["checksums"])
    assert "trajectory 7, chain 1" in format_summary(inspect(filled, verify=True))
