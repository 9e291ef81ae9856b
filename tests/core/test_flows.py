"""Flows: the contract over the public list, equivariance, base densities, files and bad configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import flowmc.flows as public
from flowmc.errors import ConfigError, FlowFileError, ParameterError, TheoryMismatchError
from flowmc.flows import (
    FLOWS,
    ContinuousFlow,
    CouplingFlow,
    Flow,
    MirroredFlow,
    PathFlow,
    SpinFlow,
    TransportFlow,
    build_flow,
    fingerprint,
    load_flow,
    save_flow,
)
from flowmc.flows.coupling import CouplingConfig
from flowmc.flows.densities import BASES, FreeFieldDensity, build_base
from flowmc.flows.file import FORMAT, write_tensors
from flowmc.lattice import checkerboard
from flowmc.seeds import torch_generator
from flowmc.testing import FlowContract
from flowmc.theories import DoubleWell, FreeScalar, GaussianMixture, Ising, Phi4, Theory, U1Gauge2D

Shaken = Callable[[Mapping[str, object], Theory], Flow]

SQUARE = Phi4((4, 4), m2=-4.0, lam=8.0)
AFFINE: dict[str, object] = {"kind": "affine"}
POINTWISE: dict[str, object] = {"kind": "sinh_arcsinh"}
DENSE: dict[str, object] = {"kind": "affine", "network": "fully_connected", "hidden": [12]}
SPLINE: dict[str, object] = {"kind": "spline", "bins": 5, "bound": 2.0, "radius": 1, "hidden": [3]}
SMALL: dict[str, object] = {"hidden": [6, 5], "windows": 3}
OPERATOR: dict[str, object] = {"features": 3, "gates": 1, "moments": 2}
REAL: list[tuple[dict[str, object], Theory]] = [
    ({"kind": "coupling"}, SQUARE),
    ({"kind": "coupling", "base": "gaussian", "z2": False, "repeat": 2}, SQUARE),
    (
        {"kind": "coupling", "base": "spectral", "layers": [{"kind": "affine", "radius": 1, "hidden": [4, 3]}]},
        FreeScalar((4, 6), 0.8),
    ),
    ({"kind": "coupling", "layers": [DENSE, POINTWISE], "repeat": 1}, FreeScalar((3, 5), 0.8)),
    ({"kind": "coupling", "layers": [DENSE], "z2": False, "repeat": 2}, FreeScalar((6,), 0.8)),
    ({"kind": "coupling", "repeat": 1}, Phi4((2, 4, 2), m2=1.0, lam=0.5)),
    ({"kind": "coupling", "base_mass": "matched", "base_learned": False, "repeat": 2}, SQUARE),
    (
        {
            "kind": "coupling",
            "base": "spectral",
            "layers": [{"kind": "additive", "partition": "stripes"}, {"kind": "rescale"}, {"kind": "spectral"}, SPLINE],
            "repeat": 1,
        },
        SQUARE,
    ),
    ({"kind": "coupling", "layers": [{**AFFINE, "partition": "quarters"}, SPLINE], "repeat": 1, "z2": False}, SQUARE),
    ({"kind": "interpolating", "networks": SMALL, "steps": 4}, FreeScalar((6,), 0.8)),
    (
        {
            "kind": "interpolating",
            "base": "free_field",
            "base_mass": "matched",
            "networks": {"network": "convolutional", "hidden": [2, 2], "radius": 1, "windows": 2},
            "integrator": "splitting",
            "steps": 1,
            "z2": True,
        },
        Phi4((2, 3), m2=-4.0, lam=8.0),
    ),
    (
        {"kind": "interpolating", "base_power": 4.0, "networks": SMALL, "integrator": "midpoint", "steps": 3},
        DoubleWell(5, 4.0, 1.5),
    ),
    (
        {"kind": "interpolating", "networks": SMALL, "integrator": "rk4_trace", "steps": 8},
        GaussianMixture(((1.0, 1.0), (-2.0, 0.5)), (1.0, 0.5), (0.3, 0.7)),
    ),
    ({"kind": "operator", "networks": OPERATOR, "steps": 8}, SQUARE),
    ({"kind": "operator", "networks": OPERATOR, "integrator": "rk4", "steps": 3}, Phi4((2, 3), m2=-4.0, lam=8.0)),
    (
        {
            "kind": "operator",
            "networks": {**OPERATOR, "gates": 0, "kernel": {"family": "spectral", "functions": 3}},
            "integrator": "midpoint",
            "steps": 3,
            "spacing": "mass",
            "conditioning": {"m2": [-5.0, 2.0], "lam": [0.1, 9.0]},
        },
        Phi4((2, 4, 2), m2=1.0, lam=0.5),
    ),
    (
        {
            "kind": "operator",
            "networks": {**OPERATOR, "kernel": {"family": "local", "functions": 2, "reach": 1.5}},
            "integrator": "splitting",
            "steps": 2,
        },
        FreeScalar((6,), 0.8),
    ),
    (
        {
            "kind": "operator",
            "networks": {**OPERATOR, "kernel": {"family": "distance", "hidden": [4, 3], "reach": 2.0}},
            "interpolation": {"kind": "trigonometric"},
            "steps": 8,
        },
        Phi4((3, 4), m2=-4.0, lam=8.0),
    ),
    ({"kind": "mirrored", "repeat": 2, "z2": False}, SQUARE),
    ({"kind": "mirrored", "layers": [DENSE], "repeat": 1, "z2": False}, FreeScalar((6,), 0.8)),
]
GAUGE: dict[str, object] = {"kind": "gauge", "layers": 8, "hidden": [4], "pieces": 3}
HYPER: list[tuple[tuple[int, int], dict[str, object]]] = [
    ((4, 4), {}),
    ((4, 8), {"pieces": 1, "network": "lattice"}),
    ((4, 8), {"mask": "stripes", "pieces": 1}),
    ((4, 4), {"mask": "stripes", "network": "lattice", "transformation": "projection", "pieces": 1}),
    ((4, 8), {"mask": "rows", "network": "lattice"}),
    ((8, 4), {"mask": "rows", "network": "lattice", "transformation": "projection", "pieces": 1}),
    ((4, 4), {"transformation": "projection", "pieces": 2, "layers": 9}),
    ((4, 6), {"network": "lattice", "hidden": [4, 3], "dilations": [1, 2, 1]}),
    ((8, 4), {"dilations": [1, 2], "holonomies": True}),
    ((2, 4), {"transformation": "projection", "pieces": 1}),
    ((2, 2), {"kernel": 1, "hidden": [3]}),
]
LINKS: list[tuple[dict[str, object], Theory]] = [({**GAUGE, **more}, U1Gauge2D(shape, 2.0)) for shape, more in HYPER]
SPINS: list[tuple[dict[str, object], Theory]] = [
    ({"kind": "autoregressive"}, Ising((4, 4), 0.44)),
    ({"kind": "autoregressive", "width": 2, "depth": 3, "z2": False}, Ising((3, 5), 0.3, field=0.2)),
    ({"kind": "autoregressive", "translations": True}, Ising((2, 3, 2), 0.2, coupling=-1.0)),
    ({"kind": "autoregressive", "network": "convolutional", "radius": 1, "depth": 2}, Ising((5, 4), 0.4)),
    ({"kind": "hierarchical"}, Ising((6, 6), 0.44)),
    ({"kind": "hierarchical", "depth": 2}, Ising((12, 12), 0.44)),
    ({"kind": "hierarchical", "exact_cross": False, "translations": True}, Ising((8, 8), 0.4)),
    ({"kind": "hierarchical", "z2": False}, Ising((16, 16), 0.5, coupling=0.8, field=0.1)),
]


def test_every_public_flow_is_tested() -> None:
    assert {str(description["kind"]) for description, _ in REAL + LINKS + SPINS} == set(FLOWS)
    concrete = {
        value
        for value in vars(public).values()
        if isinstance(value, type)
        and issubclass(value, Flow)
        and value not in {Flow, TransportFlow, ContinuousFlow, PathFlow, SpinFlow}
    }
    assert concrete == set(FLOWS.values())


@pytest.mark.parametrize("flow", REAL + LINKS + SPINS, ids=str, indirect=True)
class TestContract(FlowContract):
    @pytest.fixture
    def flow(self, request: pytest.FixtureRequest, shaken: Shaken) -> Flow:
        return shaken(*request.param)


@pytest.mark.parametrize("kind", FLOWS)
def test_fields_of_another_space_are_refused(kind: str) -> None:
    wrong = Ising((4, 4), 0.4) if FLOWS[kind].space.name == "real" else SQUARE
    with pytest.raises(TheoryMismatchError, match=kind):
        build_flow({"kind": kind}, wrong)


@pytest.mark.parametrize(
    ("description", "theory"), [e for e in REAL if e[0].get("z2", e[0]["kind"] == "coupling")], ids=str
)
def test_z2_equivariance_is_exact(description: dict[str, object], theory: Theory, shaken: Shaken) -> None:
    flow = shaken(description, theory)
    assert isinstance(flow, TransportFlow)
    latent = flow.base.draw(10, torch_generator(1))
    field, log_det = flow.forward(latent)
    mirrored, log_det_mirrored = flow.forward(-latent)
    # Splines sum their mirrored rows in another order, and integrators do not solve to the last bit; all other layers
    # are equivariant bit by bit.
    by_layers = isinstance(flow, CouplingFlow) and "spline" not in [layer["kind"] for layer in flow.config.layers]
    rounding = 0.0 if by_layers else 1e-10
    torch.testing.assert_close(mirrored, -field, rtol=0, atol=rounding)
    torch.testing.assert_close(log_det_mirrored, log_det, rtol=0, atol=rounding)
    torch.testing.assert_close(flow.log_prob(-field), flow.log_prob(field), rtol=0, atol=rounding)


def test_without_z2_the_flow_is_not_even(shaken: Shaken) -> None:
    flow = shaken({"kind": "coupling", "z2": False}, SQUARE)
    field, log_q = flow.sample(10, torch_generator(1))
    assert not torch.allclose(flow.log_prob(-field), log_q)


def test_a_mirrored_flow_is_the_even_mixture(shaken: Shaken) -> None:
    flow = shaken({"kind": "mirrored", "repeat": 2, "z2": False}, SQUARE)
    assert isinstance(flow, MirroredFlow)
    field, log_q = flow.sample(2000, torch_generator(1))
    torch.testing.assert_close(flow.log_prob(-field), log_q, rtol=0, atol=1e-10)
    density = (flow.one.log_prob(field).exp() + flow.one.log_prob(-field).exp()) / 2
    torch.testing.assert_close(log_q.exp(), density, rtol=1e-10, atol=0)
    one, log_one = flow.one.sample(2000, torch_generator(1))
    torch.testing.assert_close(field.abs(), one.abs(), rtol=0, atol=0)
    assert (log_q > log_one - np.log(2) - 1e-12).all()
    signs = (field * one).sign().flatten(1)
    assert (signs == signs[:, :1]).all()
    assert abs(signs[:, 0].sum()) < 4.5 * 2000**0.5


def test_a_mirrored_flow_starts_from_either_kind(shaken: Shaken) -> None:
    given = {"repeat": 1, "base": "spectral", "z2": False}
    one = shaken({"kind": "coupling", **given}, SQUARE)
    for other in (one, shaken({"kind": "mirrored", **given}, SQUARE)):
        flow = build_flow({"kind": "mirrored", **given}, SQUARE, seed=5).double()
        assert set(flow.start_from(other)) == set(flow.state_dict())
        inner = other.one if isinstance(other, MirroredFlow) else other
        field, _ = inner.sample(4, torch_generator(1))
        mixture = torch.logaddexp(inner.log_prob(field), inner.log_prob(-field)) - np.log(2)
        torch.testing.assert_close(flow.log_prob(field), mixture, rtol=0, atol=1e-10)


def test_an_equivariant_flow_is_not_mirrored() -> None:
    with pytest.raises(ParameterError, match="own mirror image"):
        build_flow({"kind": "mirrored", "z2": True}, SQUARE)


def test_convolutions_are_translation_equivariant(shaken: Shaken) -> None:
    # Translations that keep the sublattices: an even number of steps in all.
    flow = shaken({"kind": "coupling", "base": "free_field"}, FreeScalar((4, 6), 0.8))
    assert isinstance(flow, CouplingFlow)
    latent = flow.base.draw(5, torch_generator(1))
    field, log_det = flow.forward(latent)
    for shifts in ((1, 1), (2, 0), (1, -1), (0, 2)):
        moved, log_det_moved = flow.forward(torch.roll(latent, shifts, (1, 2)))
        torch.testing.assert_close(moved, torch.roll(field, shifts, (1, 2)), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(log_det_moved, log_det, rtol=1e-11, atol=1e-11)


def test_convolution_radius_limits_the_range(shaken: Shaken) -> None:
    layer = {"kind": "affine", "radius": 1, "output_radius": 1, "hidden": [3]}
    flow = shaken({"kind": "coupling", "layers": [layer], "repeat": 1}, FreeScalar((12, 12), 0.8))
    assert isinstance(flow, CouplingFlow)
    even = checkerboard((12, 12))
    latent = torch.zeros((2, 12, 12), dtype=torch.float64)
    latent[1, 0, 1] = 0.7
    assert not even[0, 1]
    field, _ = flow.forward(latent + 0.3)
    changed = (field[0] != field[1]).numpy()
    distance = np.minimum(np.abs(np.argwhere(changed) - [0, 1]), 12 - np.abs(np.argwhere(changed) - [0, 1])).max(axis=1)
    # Two convolutions of range one, one after the other, and again for the other sublattice.
    assert distance.max() == 4
    assert distance[even[changed]].max() == 2


@pytest.mark.parametrize("shape", [(6,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("name", BASES)
def test_base_density_is_normalised_gaussian(name: str, shape: tuple[int, ...]) -> None:
    base = build_base(name, shape, torch.float64, 0.7)
    sites = int(np.prod(shape))
    # A Gaussian's log density at zero and its curvature give the normalisation without sampling.
    zero = torch.zeros((1, *shape), dtype=torch.float64)
    with torch.no_grad():
        curvature = torch.autograd.functional.hessian(lambda x: base.log_prob(x).sum(), zero).reshape(sites, sites)  # type: ignore[no-untyped-call]
        log_normalisation = 0.5 * torch.linalg.slogdet(-curvature)[1] - 0.5 * sites * np.log(2 * np.pi)
        assert float(base.log_prob(zero)) == pytest.approx(float(log_normalisation), abs=1e-10)
        draws = base.draw(20000, torch_generator(2)).reshape(-1, sites)
    covariance = torch.linalg.inv(-curvature)
    error = torch.sqrt((covariance**2 + torch.outer(covariance.diag(), covariance.diag())) / len(draws))
    assert float(((torch.cov(draws.T) - covariance) / error).abs().max()) < 5


def test_free_field_base_is_the_free_theory(rng: np.random.Generator) -> None:
    theory = FreeScalar((4, 6), 0.9)
    base = FreeFieldDensity((4, 6), torch.float64, 0.9)
    field = theory.draw(rng, 5)
    difference = base.log_prob(torch.tensor(field)).detach().numpy() + theory.action(field)
    np.testing.assert_allclose(difference, difference[0], atol=1e-11)


def test_production_precision_keeps_the_fingerprint() -> None:
    flow = build_flow({"kind": "coupling"}, SQUARE)
    mark = fingerprint(flow)
    assert fingerprint(flow.double()) == mark
    with torch.no_grad():
        next(flow.parameters()).add_(1e-9)
    assert fingerprint(flow) != mark


def test_frozen_convolutions_follow_their_weights(shaken: Shaken) -> None:
    flow = shaken({"kind": "coupling", "repeat": 1}, SQUARE).requires_grad_(False)
    field, _ = flow.sample(5, torch_generator(1))
    before = flow.log_prob(field)
    for parameter in flow.parameters():
        parameter.data.mul_(1.1)  # around autograd: no version is counted
    fresh = build_flow({"kind": "coupling", "repeat": 1}, SQUARE).double()
    fresh.load_state_dict(flow.state_dict())
    assert not torch.equal(flow.log_prob(field), before)
    torch.testing.assert_close(flow.log_prob(field), fresh.log_prob(field), rtol=0, atol=1e-12)
    back = flow.to(torch.float32).to(torch.float64)
    fresh.load_state_dict(back.state_dict())
    torch.testing.assert_close(back.log_prob(field), fresh.log_prob(field), rtol=0, atol=1e-12)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one = build_flow({"kind": "coupling"}, SQUARE, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(one) == fingerprint(build_flow({"kind": "coupling"}, SQUARE, seed=5))
    assert fingerprint(one) != fingerprint(build_flow({"kind": "coupling"}, SQUARE, seed=6))


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "flow.safetensors"
        save_flow(path, build_flow({"kind": "coupling", "repeat": 1}, SQUARE), {})
        return path

    def test_truncated_at_any_length(self, path: Path) -> None:
        data = path.read_bytes()
        for length in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(FlowFileError, match="truncated"):
                load_flow(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FlowFileError, match="does not exist"):
            load_flow(tmp_path / "none.safetensors")

    def test_nan_weights(self, tmp_path: Path) -> None:
        flow = build_flow({"kind": "coupling"}, SQUARE)
        with torch.no_grad():
            next(flow.parameters()).fill_(float("nan"))
        save_flow(tmp_path / "nan.safetensors", flow, {})
        with pytest.raises(FlowFileError, match="NaN"):
            load_flow(tmp_path / "nan.safetensors")

    def test_altered_weights(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(FlowFileError, match="fingerprint"):
            load_flow(path)

    def test_foreign_safetensors(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
        with pytest.raises(FlowFileError, match="header"):
            load_flow(tmp_path / "foreign.safetensors")

    def test_newer_format(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "new.safetensors", {"x": torch.zeros(2)}, {"format": 99})
        with pytest.raises(FlowFileError, match="format"):
            load_flow(tmp_path / "new.safetensors")

    def test_a_checkpoint_is_not_a_flow(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "c.safetensors", {"x": torch.zeros(2)}, {"format": FORMAT, "step": 3})
        with pytest.raises(FlowFileError, match="checkpoint"):
            load_flow(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {"layers": ()},
        {"repeat": 0},
        {"base": "x"},
        {"dtype": "float16"},
        {"base_mass": 0.0},
        {"base_mass": "heavy"},
        {"base_mass": float("inf")},
        {"layers": ({"kind": ["affine"]},)},
        {"layers": ({"radius": 2},)},
        {"layers": ({"kind": "afine"},)},
        {"layers": ({"kind": "rescale", "radius": 2},)},
        {"layers": ({"kind": "affine", "radius": "two"},)},
        {"layers": ({"kind": "affine", "radius": True},)},
        {"layers": ({"kind": "affine", "radius": 0},)},
        {"layers": ({"kind": "affine", "hidden": []},)},
        {"layers": ({"kind": "affine", "network": "x"},)},
        {"layers": ({"kind": "affine", "partition": "x"},)},
        {"layers": ({"kind": "affine", "output_radius": -2},)},
        {"layers": ({"kind": "spline", "bins": 1},)},
        {"layers": ({"kind": "spline", "bound": 0.0},)},
    ],
)
def test_bad_hyper_parameters_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        CouplingConfig(**config)  # type: ignore[arg-type]


def test_unknown_kind_and_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="coupling"):
        build_flow({"kind": "couplings"}, SQUARE)
    with pytest.raises(ConfigError, match="depth"):
        build_flow({"kind": "coupling", "depth": 3}, SQUARE)


def test_convolutions_refuse_odd_extents() -> None:
    with pytest.raises(ParameterError, match="odd"):
        build_flow({"kind": "coupling"}, FreeScalar((4, 5), 0.8))
