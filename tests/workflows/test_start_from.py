"""Trainings that start from another flow's weights: what fits is taken over, its cost too, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from flowmc.config import parse_run
from flowmc.display import SilentDisplay
from flowmc.errors import ConfigError, FlowFileError
from flowmc.flows import SavedFlow, build_flow, save_flow
from flowmc.theories import Ising, Phi4
from flowmc.workflows import train_flow

NETWORKS = {"kind": "hierarchical", "exact_cross": False}


def run(extent: int, flow: dict[str, Any], start_from: str, tmp_path: Path, **options: Any) -> SavedFlow | None:
    """Train for as few steps as there can be, so slowly that the weights hardly move."""
    config = parse_run(
        {
            "theory": {"name": "ising", "shape": [extent, extent], "beta": 0.44},
            "flow": flow,
            "training": {
                "objective": "reinforce",
                "steps": 3,
                "batch_size": 4,
                "learning_rate": 1e-12,
                "start_from": start_from,
                "seed": 7,
            },
        }
    )
    given = {"resume": False, "should_stop": lambda: "", "display": SilentDisplay(), "base": tmp_path, **options}
    return train_flow(config, tmp_path / "large.safetensors", **given)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A flow on 8 × 8 sites that cost a thousand seconds."""
    theory = Ising((8, 8), 0.4)
    path = tmp_path / "small.safetensors"
    flow = build_flow(NETWORKS, theory, seed=5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3)
    save_flow(path, flow, {"seconds": 1000.0})
    return path


def test_networks_of_blocks_serve_a_larger_lattice(small: Path, tmp_path: Path) -> None:
    saved = run(16, NETWORKS, small.name, tmp_path)
    assert saved is not None
    old, fresh = SavedFlow.read(small), build_flow(NETWORKS, Ising((16, 16), 0.44), seed=7).state_dict()
    taken = {name for name in saved.tensors if name.startswith("levels.block_3.")}
    for name, tensor in saved.tensors.items():
        source = old.tensors if name in taken else fresh
        torch.testing.assert_close(tensor, source[name], rtol=0, atol=1e-9)
    record = saved.training["start_from"]
    assert record["fingerprint"] == old.fingerprint
    assert record["theory"] == old.theory.describe()
    assert record["weights"].startswith(f"{len(taken)} of {len(saved.tensors)} ")
    # The cost of a training contains that of the one it builds on.
    assert 1000 < saved.training["seconds"] < 1100


def test_other_couplings_take_every_weight(small: Path, tmp_path: Path) -> None:
    saved = run(8, NETWORKS, small.name, tmp_path)
    assert saved is not None
    old = SavedFlow.read(small)
    assert saved.theory != old.theory
    for name, tensor in saved.tensors.items():
        torch.testing.assert_close(tensor, old.tensors[name], rtol=0, atol=1e-9)


def test_stopped_training_resumes_from_its_own_weights(small: Path, tmp_path: Path) -> None:
    whole = run(16, NETWORKS, small.name, tmp_path)
    assert whole is not None
    (tmp_path / "large.safetensors").unlink()
    (tmp_path / "large.checkpoint.safetensors").unlink()
    assert run(16, NETWORKS, small.name, tmp_path, should_stop=lambda: "now") is None
    resumed = run(16, NETWORKS, small.name, tmp_path, resume=True)
    assert resumed is not None
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.training["seconds"] > 1000


def test_no_weight_that_fits_is_an_error(small: Path, tmp_path: Path) -> None:
    # With exact crosses only the boundary is learned, and that is another one.
    with pytest.raises(ConfigError, match="none fits"):
        run(16, {"kind": "hierarchical", "width": 2}, small.name, tmp_path)
    assert not (tmp_path / "large.checkpoint.safetensors").exists()


def test_another_kind_is_an_error(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'autoregressive'"):
        run(8, {"kind": "autoregressive"}, small.name, tmp_path)


def test_no_flow_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError, match="does not exist"):
        run(8, NETWORKS, "nowhere.safetensors", tmp_path)


def test_a_changed_source_is_noticed_on_resumption(small: Path, tmp_path: Path) -> None:
    assert run(16, NETWORKS, small.name, tmp_path, should_stop=lambda: "now") is None
    flow = build_flow(NETWORKS, Ising((8, 8), 0.4), seed=6)
    save_flow(small, flow, {"seconds": 5.0})
    with pytest.raises(FlowFileError, match="start"):
        run(16, NETWORKS, small.name, tmp_path, resume=True)


class TestWithoutTraining:
    """`steps = 0`: an operator flow is run on a lattice that it was not trained on."""

    FLOW: ClassVar[dict[str, Any]] = {"kind": "operator", "networks": {"features": 2, "gates": 1}, "steps": 4}

    def transfer(self, tmp_path: Path, **training: Any) -> SavedFlow:
        flow = build_flow(self.FLOW, Phi4((4, 4), -4.0, 8.0), seed=5)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1)
        save_flow(tmp_path / "small.safetensors", flow, {"seconds": 1000.0})
        config = parse_run(
            {
                "theory": {"name": "phi4", "shape": [6, 8], "m2": -4.0, "lam": 8.0},
                "flow": self.FLOW,
                "training": {"steps": 0, "start_from": "small.safetensors", **training},
            }
        )
        output = tmp_path / "large.safetensors"
        given: dict[str, Any] = {"should_stop": lambda: "", "display": SilentDisplay(), "base": tmp_path}
        saved = train_flow(config, output, resume=False, **given)
        kept = train_flow(config, output, resume=True, **given)
        assert saved is not None
        assert kept is not None
        assert kept.fingerprint == saved.fingerprint
        return saved

    def test_weights_are_kept_and_their_cost_too(self, tmp_path: Path) -> None:
        saved = self.transfer(tmp_path)
        assert saved.theory == Phi4((6, 8), -4.0, 8.0)
        assert saved.training["steps"] == 0
        assert 1000 <= saved.training["seconds"] < 1001
        before = SavedFlow.read(tmp_path / "small.safetensors").tensors
        for name, tensor in saved.tensors.items():
            # The base belongs to the lattice.
            assert torch.equal(tensor, before[name]) == (name != "base.log_mass"), name

    def test_a_part_of_the_weights_is_refused(self, tmp_path: Path) -> None:
        """A convolutional coupling flow on other extents keeps its layers, a fully connected one does not."""
        layers = [{"kind": "affine"}, {"kind": "affine", "network": "fully_connected", "hidden": [4]}]
        flow = {"kind": "coupling", "layers": layers, "repeat": 1}
        save_flow(tmp_path / "small.safetensors", build_flow(flow, Phi4((4, 4), -4.0, 8.0), seed=5), {})
        config = parse_run(
            {
                "theory": {"name": "phi4", "shape": [4, 6], "m2": -4.0, "lam": 8.0},
                "flow": flow,
                "training": {"steps": 0, "start_from": "small.safetensors"},
            }
        )
        given: dict[str, Any] = {"should_stop": lambda: "", "display": SilentDisplay(), "base": tmp_path}
        with pytest.raises(ConfigError, match="steps = 0"):
            train_flow(config, tmp_path / "large.safetensors", resume=False, **given)

    def test_without_weights_it_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="steps = 0 without start_from"):
            self.transfer(tmp_path, start_from="")
