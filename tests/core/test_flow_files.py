"""Flow files: what they say of themselves, and files that another version of flowmc wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmc.errors import FlowFileError
from flowmc.flows import Flow, SavedFlow, build_flow, load_flow, save_flow
from flowmc.flows.file import FORMAT, read_tensors, write_tensors
from flowmc.theories import Ising, Phi4

CASES: list[Flow] = [
    build_flow({"kind": "coupling", "repeat": 1}, Phi4((4, 4), m2=-4.0, lam=8.0)),
    build_flow({"kind": "hierarchical", "z2": False}, Ising((8, 8), 0.3, field=0.2)),
]


@pytest.mark.parametrize("flow", CASES, ids=lambda flow: str(flow.kind))
class TestTheory:
    def test_is_that_of_the_flow(self, flow: Flow, tmp_path: Path) -> None:
        save_flow(tmp_path / "flow.safetensors", flow, {})
        loaded, saved = load_flow(tmp_path / "flow.safetensors")
        assert saved.theory == loaded.theory == flow.theory

    def test_that_was_altered_is_noticed(self, flow: Flow, tmp_path: Path) -> None:
        path = tmp_path / "flow.safetensors"
        save_flow(path, flow, {})
        tensors, header = read_tensors(path, "a flow")
        name = "beta" if "beta" in header["theory"] else "lam"
        write_tensors(path, tensors, {**header, "theory": {**header["theory"], name: 0.25}})
        with pytest.raises(FlowFileError, match="fingerprint"):
            load_flow(path)


@pytest.mark.parametrize("number", [1, FORMAT + 1, None, "2"])
def test_other_formats_are_named_as_such(number: object, tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    save_flow(path, CASES[0], {})
    tensors, header = read_tensors(path, "a flow")
    # The fingerprint of another format is none of this one, but that is not what is wrong.
    write_tensors(path, tensors, {**header, "format": number, "fingerprint": "0" * 64})
    for read in (load_flow, SavedFlow.read):
        with pytest.raises(FlowFileError) as caught:
            read(path)
        assert f"format {number!r}" in caught.value.got
        assert f"format {FORMAT}" in caught.value.expected
        assert "altered" not in str(caught.value)


def test_format_1_is_of_the_past() -> None:
    assert FORMAT > 1


def test_weights_that_were_altered_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    save_flow(path, CASES[1], {})
    tensors, header = read_tensors(path, "a flow")
    name = next(iter(tensors))
    write_tensors(path, {**tensors, name: tensors[name] + torch.tensor(1e-3)}, header)
    with pytest.raises(FlowFileError, match="altered"):
        load_flow(path)
