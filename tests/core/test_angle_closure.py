"""The certificate of densities on links: it passes right ones and refuses a zoo of wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmc.errors import CertificateError
from flowmc.flows import Flow, GaugeFlow, build_flow
from flowmc.proposals import Certificate, Proposal, ProposalMetadata, as_proposal, certify
from flowmc.proposals.closure import angle_closure
from flowmc.seeds import numpy_generator
from flowmc.testing import ProposalContract, u1_draws
from flowmc.theories import Theory, U1Gauge2D
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import plaquette_angles
from flowmc_analysis.exact_u1 import u1_exact
from flowmc_analysis.zscores import family_p_value

Shaken = Callable[[Mapping[str, object], Theory], Flow]

THEORY = U1Gauge2D((4, 4), 2.0)
SPLINES = {"kind": "gauge", "layers": 8, "hidden": [4], "pieces": 3}
PROJECTIONS = {**SPLINES, "transformation": "projection", "pieces": 1}
DENSITY = "draws against their density"


class Boltzmann:
    """The exact distribution of U(1) gauge theory as a proposal."""

    def __init__(self, theory: U1Gauge2D) -> None:
        self._theory = theory
        self._log_z = u1_exact((theory.shape[0], theory.shape[1]), theory.beta).log_z

    @property
    def metadata(self) -> ProposalMetadata:
        return ProposalMetadata(
            self._theory.field_shape, "float64", deterministic=True, exact=True, fingerprint="exact", space="angle"
        )

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field = u1_draws(self._theory, numpy_generator(seed), n)
        return field, self.log_prob(field)

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return -np.asarray(self._theory.action(field)) - self._log_z


class Mixed:
    """Draws of one proposal, changed, with the log q of another, changed; never a map whose Jacobian would tell."""

    def __init__(
        self,
        draws: Proposal,
        density: Proposal,
        *,
        field: Callable[[np.ndarray], np.ndarray] = np.asarray,
        log_q: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda log_q, _: log_q,
    ) -> None:
        self._draws, self._density, self._field, self._log_q = draws, density, field, log_q

    @property
    def metadata(self) -> ProposalMetadata:
        return replace(self._density.metadata, fingerprint="mixed")

    def sample(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        field = self._field(self._draws.sample(seed, n)[0])
        return field, self.log_prob(field)

    def log_prob(self, field: np.ndarray) -> np.ndarray:
        return self._log_q(self._density.log_prob(field), field)


class Silent(torch.nn.Module):
    """A layer that keeps its determinant to itself."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, field: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        moved, log_slope = self.layer(field, inverse=inverse)
        return moved, torch.zeros_like(log_slope)


def without_determinants(flow: Flow, *numbers: int) -> Flow:
    assert isinstance(flow, GaugeFlow)
    silent = deepcopy(flow)
    for number in numbers:
        silent.layers[number] = Silent(silent.layers[number])
    return silent


def charge(field: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(wrapped(plaquette_angles(field)).sum((1, 2)) / (2 * np.pi)))


def towards_positive_charge(field: np.ndarray) -> np.ndarray:
    return np.where((charge(field) < 0)[:, None, None, None], -field, field)


def of_charge_zero(field: np.ndarray) -> np.ndarray:
    # Right in their sector; others are overwritten by them.
    neutral = field[charge(field) == 0]
    return np.asarray(neutral[np.arange(len(field)) % len(neutral)])


def time_lines(field: np.ndarray) -> np.ndarray:
    return np.asarray(field[..., 0].sum(1))


def without_phase(field: np.ndarray) -> np.ndarray:
    """Turn the Wilson lines in time so that their mean is real, which no plaquette notices."""
    turned = field.copy()
    turned[:, 0, :, 0] -= np.angle(np.exp(1j * time_lines(field)).mean(1))[:, None]
    return turned


def failures(certificate: Certificate) -> set[str]:
    return {check.name for check in certificate.checks if not check.passed}


class TestBoltzmann(ProposalContract):
    @pytest.fixture
    def proposal(self) -> Proposal:
        return Boltzmann(THEORY)


class TestRightOnesPass:
    @pytest.mark.parametrize("beta", [0.1, 1.0, 2.0, 8.0])
    @pytest.mark.parametrize("shape", [(2, 2), (4, 6)], ids=str)
    def test_exact_draws_at_every_coupling(self, shape: tuple[int, int], beta: float, test_seed: int) -> None:
        certify(Boltzmann(U1Gauge2D(shape, beta)), test_seed, n_finite=2000).require()

    @pytest.mark.parametrize(
        ("hyper", "dtype"),
        [(SPLINES, torch.float32), (PROJECTIONS, torch.float64), ({**SPLINES, "holonomies": True}, torch.float32)],
        ids=str,
    )
    def test_flows_in_both_precisions(
        self, hyper: dict[str, object], dtype: torch.dtype, test_seed: int, shaken: Shaken
    ) -> None:
        proposal = as_proposal(shaken(hyper, THEORY).to(dtype))
        assert proposal.metadata.space == "angle"
        certify(proposal, test_seed, n_finite=1000).require()

    def test_untrained_flow(self, test_seed: int) -> None:
        # All of its weights are one: nothing changes under a reflection, and no noise is left to measure by.
        certify(as_proposal(build_flow(SPLINES, THEORY)), test_seed, n_finite=500).require()

    def test_draws_that_were_wrapped_for_these_tests(self, test_seed: int) -> None:
        certify(Mixed(EXACT, EXACT), test_seed, n_finite=2000).require()

    def test_identities_hold_over_many_draws(self, test_seed: int) -> None:
        proposal = Boltzmann(THEORY)
        field, _ = proposal.sample(test_seed, 20000)
        scores = [identity.score for identity in angle_closure(proposal, field, test_seed).values()]
        assert family_p_value(np.array(scores)) > 1e-5


def attracted(log_q: np.ndarray, field: np.ndarray) -> np.ndarray:
    plaquette = np.cos(plaquette_angles(field))
    return np.asarray(log_q + 0.15 * (plaquette * np.roll(plaquette, 1, 1)).sum((1, 2)))


def preferring_a_sign(log_q: np.ndarray, field: np.ndarray) -> np.ndarray:
    return np.asarray(log_q + 0.3 * np.sin(plaquette_angles(field)).sum((1, 2)))


def preferring_a_phase(log_q: np.ndarray, field: np.ndarray) -> np.ndarray:
    return np.asarray(log_q + 0.3 * np.cos(time_lines(field)).sum(1))


EXACT = Boltzmann(THEORY)
OF_EXACT_DRAWS = {
    "log q times 1.1": Mixed(EXACT, EXACT, log_q=lambda log_q, _: 1.1 * log_q),
    "log q of another coupling": Mixed(EXACT, Boltzmann(U1Gauge2D((4, 4), 2.2))),
    "log q that prefers a sign": Mixed(EXACT, EXACT, log_q=preferring_a_sign),
    "log q of neighbours that attract": Mixed(EXACT, EXACT, log_q=attracted),
    "draws of positive charge": Mixed(EXACT, EXACT, field=towards_positive_charge),
    "draws of charge zero": Mixed(EXACT, EXACT, field=of_charge_zero),
    "draws of real Wilson lines": Mixed(EXACT, EXACT, field=without_phase),
    "log q that prefers a phase of Wilson lines": Mixed(EXACT, EXACT, log_q=preferring_a_phase),
    "draws of another coupling": Mixed(Boltzmann(U1Gauge2D((4, 4), 1.8)), EXACT),
}


def assert_refused_by_the_density_alone(proposal: Proposal, seed: int, draws: int = 2000) -> None:
    certificate = certify(proposal, seed, n_finite=draws)
    # Log q of a draw and of a given field agree: nothing but the identities can tell.
    # Where draws are overwritten by others, these come twice.
    assert failures(certificate) - {"other seeds, other draws"} == {DENSITY}, certificate.checks
    with pytest.raises(CertificateError, match=DENSITY):
        certificate.require()


@pytest.mark.parametrize("disease", OF_EXACT_DRAWS)
def test_wrong_densities_are_refused(disease: str, test_seed: int) -> None:
    assert_refused_by_the_density_alone(OF_EXACT_DRAWS[disease], test_seed)


@pytest.mark.parametrize("disease", ["wrong sign", "another flow", "never moved", "exchanged"])
def test_wrong_flows_are_refused(disease: str, shaken: Shaken, test_seed: int) -> None:
    right = as_proposal(shaken(SPLINES, THEORY))
    if disease == "wrong sign":
        wrong = Mixed(right, right, log_q=lambda log_q, _: -log_q)
    elif disease == "another flow":
        wrong = Mixed(right, as_proposal(shaken(PROJECTIONS, THEORY)))
    elif disease == "never moved":
        wrong = Mixed(as_proposal(build_flow(SPLINES, THEORY).double()), right)
    else:
        wrong = Mixed(right, right, field=lambda field: field.swapaxes(1, 2))
    assert_refused_by_the_density_alone(wrong, test_seed, draws=1000)


@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_missing_determinant_is_seen_by_the_jacobian(number: int, shaken: Shaken, test_seed: int) -> None:
    # The density need not show it: what is left may be right on average over what was left out.
    flow = without_determinants(shaken(SPLINES, U1Gauge2D((2, 2), 2.0)), number)
    failed = failures(certify(as_proposal(flow), test_seed, n_finite=200))
    assert "log-determinant against the full Jacobian" in failed


def test_angles_that_are_no_links_are_refused(test_seed: int) -> None:
    with pytest.raises(CertificateError, match="links"):
        angle_closure(EXACT, np.zeros((3, 4, 4)), test_seed)


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_angles_that_are_no_numbers_are_refused(bad: float, test_seed: int) -> None:
    def spoilt(field: np.ndarray) -> np.ndarray:
        field = field.copy()
        field[::4, 0, 0, 0] = bad
        return field

    exact = Boltzmann(THEORY)
    certificate = certify(Mixed(exact, exact, field=spoilt), test_seed, n_finite=1000)
    (check,) = [check for check in certificate.checks if check.name == "finite draws"]
    assert (check.value, check.passed) == (250, False)
