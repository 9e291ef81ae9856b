"""The contract of a theory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError
from flowmc.testing.links import gauge_transformed
from flowmc.theories import GaugeTheory2D, ScalarTheory, SmoothTheory, Theory, from_description
from flowmc.theories.base import STARTS

__all__ = ["GaugeTheoryContract", "ScalarTheoryContract", "SmoothTheoryContract", "TheoryContract"]


class TheoryContract:
    """Tests of a `Theory`; provide the fixture ``theory``."""

    @pytest.fixture
    def theory(self) -> Theory:
        """Return the theory under test."""
        raise NotImplementedError

    @pytest.fixture
    def field(self, theory: Theory) -> NDArray[Any]:
        """Five rough fields, so that every term of the action counts."""
        field = theory.start(np.random.default_rng(7), 5, "hot")
        if theory.space.bounded:
            # A disordered start is as rough as such fields get.
            return field
        scaled: NDArray[Any] = field * np.linspace(0.5, 2, 5).reshape(-1, *[1] * len(theory.field_shape))
        return scaled

    def test_action_is_the_same_in_every_library(self, theory: Theory, field: NDArray[Any]) -> None:
        reference = theory.action(field)
        assert reference.shape == (5,)
        assert reference.dtype == np.float64
        np.testing.assert_allclose(theory.action(torch.tensor(field)).numpy(), reference, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(jax.jit(theory.action)(jnp.asarray(field)), reference, rtol=1e-12, atol=1e-12)

    def test_action_of_float32_is_summed_in_float64(self, theory: Theory, field: NDArray[Any]) -> None:
        assert theory.action(field.astype(np.float32)).dtype == np.float64
        assert theory.action(torch.tensor(field, dtype=torch.float32)).dtype == torch.float64

    def test_configurations_of_a_batch_are_independent(self, theory: Theory, field: NDArray[Any]) -> None:
        alone = np.concatenate([theory.action(field[i : i + 1]) for i in range(len(field))])
        np.testing.assert_allclose(theory.action(field), alone, rtol=1e-13)

    def test_action_is_translation_invariant_as_the_theory_says(self, theory: Theory, field: NDArray[Any]) -> None:
        action = theory.action(field)
        moved = [theory.action(np.roll(field, 1, axis=axis)) for axis in range(1, len(theory.shape) + 1)]
        if theory.homogeneous:
            for other in moved:
                np.testing.assert_allclose(other, action, rtol=1e-12)
        else:
            assert not all(np.allclose(other, action, rtol=1e-6) for other in moved)

    def test_identities_are_the_same_in_every_library(self, theory: Theory, field: NDArray[Any]) -> None:
        identities = theory.identities()
        assert identities, "a theory without any identity cannot be monitored"
        for name, identity in identities.items():
            reference = np.asarray(identity(field))
            assert reference.shape == (5,), name
            assert reference.dtype == np.float64, name
            assert np.isfinite(reference).all(), name
            by_jax = jax.jit(identity)(jnp.asarray(field))
            np.testing.assert_allclose(by_jax, reference, rtol=1e-11, atol=1e-11, err_msg=name)

    def test_internal_axes_are_those_beside_the_lattice(self, theory: Theory) -> None:
        assert len(theory.shape) + len(theory.internal_axes) == len(theory.field_shape)
        assert theory.field_shape[: len(theory.shape)] == theory.shape

    def test_observers_measure_each_configuration(self, theory: Theory, field: NDArray[Any]) -> None:
        observers = theory.observers()
        assert not observers.keys() & theory.identities().keys()
        for name, observer in observers.items():
            measured = observer(field)
            assert measured.shape[0] == 5, name
            assert measured.dtype == np.float64, name
            assert np.isfinite(measured).all(), name
            np.testing.assert_allclose(observer(field[1:3]), measured[1:3], rtol=1e-11, atol=1e-11, err_msg=name)
            np.testing.assert_array_equal(observer(field), measured, err_msg=name)

    def test_description_rebuilds_the_theory(self, theory: Theory) -> None:
        assert from_description(theory.describe()) == theory
        assert hash(from_description(theory.describe())) == hash(theory)

    def test_theory_is_frozen(self, theory: Theory) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            theory.shape = (2, 2)

    @pytest.mark.parametrize("kind", STARTS)
    def test_starts_are_fields_of_the_space(self, theory: Theory, kind: str) -> None:
        start = theory.start(np.random.default_rng(3), 4, kind)
        assert start.shape == (4, *theory.field_shape)
        assert start.dtype == theory.space.dtype
        assert np.all(theory.space.contains(start.reshape(4, -1)))
        assert np.isfinite(theory.action(start)).all()

    def test_wrong_shape_is_refused(self, theory: Theory, field: NDArray[Any]) -> None:
        for wrong in (field[:, 1:], field[0]):
            with pytest.raises(LatticeMismatchError, match="expected"):
                theory.action(wrong)
            for identity in theory.identities().values():
                with pytest.raises(LatticeMismatchError, match="expected"):
                    identity(wrong)


class SmoothTheoryContract(TheoryContract):
    """Tests of a `SmoothTheory`; provide the fixture ``theory``."""

    @pytest.fixture
    def theory(self) -> SmoothTheory:
        """Return the theory under test."""
        raise NotImplementedError

    def test_force_is_minus_the_gradient(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        leaf = torch.tensor(field, requires_grad=True)
        (gradient,) = torch.autograd.grad(theory.action(leaf).sum(), leaf)
        np.testing.assert_allclose(theory.force(field), -gradient.numpy(), rtol=1e-11, atol=1e-11)
        by_jax = jax.jit(jax.grad(lambda x: theory.action(x).sum()))(jnp.asarray(field))
        np.testing.assert_allclose(jax.jit(theory.force)(jnp.asarray(field)), -by_jax, rtol=1e-11, atol=1e-11)

    def test_action_and_force_are_the_action_and_the_force(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        by_jax = jax.jit(theory.action_and_force)(jnp.asarray(field))
        for action, force in (theory.action_and_force(field), theory.action_and_force(torch.tensor(field)), by_jax):
            np.testing.assert_allclose(action, theory.action(field), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(force, theory.force(field), rtol=1e-11, atol=1e-11)

    def test_force_has_the_type_of_the_field(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        assert theory.force(field.astype(np.float32)).dtype == np.float32

    def test_force_of_a_wrong_shape_is_refused(self, theory: SmoothTheory, field: NDArray[Any]) -> None:
        for wrong in (field[:, 1:], field[0]):
            with pytest.raises(LatticeMismatchError, match="expected"):
                theory.force(wrong)


class ScalarTheoryContract(SmoothTheoryContract):
    """Tests of a `ScalarTheory`; provide the fixture ``theory``."""

    def test_virial_is_field_times_gradient(self, theory: ScalarTheory, field: NDArray[Any]) -> None:
        expected = -(field * theory.force(field)).reshape(5, -1).sum(1)
        np.testing.assert_allclose(theory.virial(field), expected, rtol=1e-12)
        assert "virial" in theory.identities()


class GaugeTheoryContract(SmoothTheoryContract):
    """Tests of a `GaugeTheory2D`; provide the fixture ``theory``."""

    @pytest.fixture
    def theory(self) -> GaugeTheory2D:
        """Return the theory under test."""
        raise NotImplementedError

    @pytest.fixture
    def same(self, field: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return fields that a symmetry makes equivalent to ``field``, by its name."""
        generator = np.random.default_rng(11)
        turns = 2 * np.pi * generator.integers(-3, 4, field.shape)
        # x → −x: the spatial link from x to x+1 becomes the one from −x−1 to −x, reversed.
        mirrored = np.roll(field[:, :, ::-1], 1, axis=2)
        mirrored[..., 1] = -np.roll(mirrored[..., 1], -1, axis=2)
        return {
            "gauge": gauge_transformed(field, generator.uniform(-np.pi, np.pi, field.shape[:-1])),
            "turns": field + turns,
            "charge conjugation": -field,
            "reflection": mirrored,
        }

    def test_symmetries_of_the_action(
        self, theory: GaugeTheory2D, field: NDArray[Any], same: dict[str, NDArray[Any]]
    ) -> None:
        for symmetry, other in same.items():
            np.testing.assert_allclose(theory.action(other), theory.action(field), rtol=1e-11, err_msg=symmetry)

    def test_symmetries_of_identities_and_observers(
        self, theory: GaugeTheory2D, field: NDArray[Any], same: dict[str, NDArray[Any]]
    ) -> None:
        for name, function in {**theory.identities(), **theory.observers()}.items():
            for symmetry, other in same.items():
                expected = function(field)
                np.testing.assert_allclose(
                    function(other), expected, rtol=1e-9, atol=1e-9, err_msg=f"{name} {symmetry}"
                )

    def test_force_is_gauge_invariant_and_periodic(
        self, theory: GaugeTheory2D, field: NDArray[Any], same: dict[str, NDArray[Any]]
    ) -> None:
        force = theory.force(field)
        np.testing.assert_allclose(theory.force(same["gauge"]), force, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(theory.force(same["turns"]), force, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(theory.force(same["charge conjugation"]), -force, rtol=1e-9, atol=1e-9)

    def test_force_has_no_divergence(self, theory: GaugeTheory2D, field: NDArray[Any]) -> None:
        # Gauge invariance, site by site: Σ_μ [F_μ(x) − F_μ(x−μ)] = 0.
        force = theory.force(field)
        behind = [np.roll(force[..., direction], 1, axis=1 + direction) for direction in (0, 1)]
        np.testing.assert_allclose(force.sum(-1), sum(behind), rtol=1e-10, atol=1e-10)
