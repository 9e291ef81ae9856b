"""Wilson fermions: the operator against one written out by loops, its spectrum, determinants and their slope."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.testing import u1_draws
from flowmc.testing.links import gauge_transformed
from flowmc.theories import U1Gauge2D, determinants
from flowmc.theories.wilson import (
    determinant_and_force,
    dirac_adjoint_apply,
    dirac_apply,
    dirac_matrix,
    even_odd_matrix,
    fermion_links,
    hopping,
    hopping_slope,
    log_determinant,
    propagator,
)

EVEN = [(2, 2), (2, 4), (4, 2), (4, 4), (6, 4), (4, 8)]
SHAPES = [*EVEN, (3, 3), (3, 4), (2, 5), (5, 3)]
# Lattices on which JAX is tested too, which compiles for each: paths that fall together, even and odd extents.
COMPILED = [(2, 2), (4, 4), (3, 4)]
KAPPA = 0.276
PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])


def links(shape: tuple[int, int], rng: np.random.Generator, n: int = 3) -> np.ndarray:
    return rng.uniform(-np.pi, np.pi, (n, *shape, 2))


def written_out(field: np.ndarray, kappa: float) -> np.ndarray:
    """D of one configuration, site by site and direction by direction as the papers print it."""
    n_times, n_spaces = field.shape[:2]
    matrix = np.eye(2 * n_times * n_spaces, dtype=complex)

    def block(t: int, x: int) -> slice:
        number = 2 * (t % n_times * n_spaces + x % n_spaces)
        return slice(number, number + 2)

    for t in range(n_times):
        for x in range(n_spaces):
            for direction, (dt, dx) in enumerate([(1, 0), (0, 1)]):
                boundary = -1 if t + dt == n_times else 1
                link = boundary * np.exp(1j * field[t, x, direction])
                here, ahead = block(t, x), block(t + dt, x + dx)
                matrix[here, ahead] -= kappa * (np.eye(2) - PAULI[direction]) * link
                matrix[ahead, here] -= kappa * (np.eye(2) + PAULI[direction]) * np.conj(link)
    return matrix


def gamma5(matrix: np.ndarray) -> np.ndarray:
    sign = np.tile([1.0, -1.0], matrix.shape[-1] // 2)
    return np.asarray(sign[:, None] * matrix * sign)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrix_is_the_printed_operator(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    expected = np.stack([written_out(one, KAPPA) for one in field])
    np.testing.assert_allclose(dirac_matrix(field, KAPPA), expected, atol=1e-14)
    np.testing.assert_allclose(dirac_matrix(torch.tensor(field), KAPPA).numpy(), expected, atol=1e-14)
    if shape in COMPILED:
        by_jax = jax.jit(dirac_matrix, static_argnums=1)(field, KAPPA)
        np.testing.assert_allclose(by_jax, expected, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operator_without_a_matrix_is_the_same(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    spinor = rng.standard_normal((3, *shape, 2)) + 1j * rng.standard_normal((3, *shape, 2))
    matrix = dirac_matrix(field, KAPPA)
    for apply, operator in ((dirac_apply, matrix), (dirac_adjoint_apply, matrix.conj().swapaxes(1, 2))):
        expected = (operator @ spinor.reshape(3, -1, 1)).reshape(spinor.shape)
        np.testing.assert_allclose(apply(field, KAPPA, spinor), expected, atol=1e-13)
        by_torch = apply(torch.tensor(field), KAPPA, torch.tensor(spinor))
        np.testing.assert_allclose(by_torch.numpy(), expected, atol=1e-13)
        if shape in COMPILED:
            by_jax = jax.jit(apply, static_argnums=1)(field, KAPPA, spinor)
            np.testing.assert_allclose(by_jax, expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5)], ids=str)
def test_slope_of_a_matrix_element(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    left, right = rng.standard_normal((2, 3, *shape, 2)) + 1j * rng.standard_normal((2, 3, *shape, 2))
    leaf = torch.tensor(field, requires_grad=True)
    bra, ket = torch.tensor(left), torch.tensor(right)
    (expected,) = torch.autograd.grad((bra.conj() * hopping(fermion_links(leaf), ket)).real.sum(), leaf)
    np.testing.assert_allclose(hopping_slope(fermion_links(field), left, right), expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
def test_gamma5_hermiticity(shape: tuple[int, int], rng: np.random.Generator) -> None:
    matrix = dirac_matrix(links(shape, rng), KAPPA)
    np.testing.assert_allclose(gamma5(matrix), matrix.conj().swapaxes(1, 2), atol=1e-14)
    determinant = np.linalg.det(matrix)
    np.testing.assert_allclose(determinant.imag / np.abs(determinant), 0, atol=1e-12)


@pytest.mark.parametrize("shape", EVEN, ids=str)
def test_even_odd_matrix_is_the_schur_complement(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    hopping = (np.eye(2 * field[0, ..., 0].size) - dirac_matrix(field, KAPPA)) / KAPPA
    even = np.repeat(np.indices(shape).sum(0).ravel() % 2 == 0, 2)
    assert not hopping[:, even][:, :, even].any()
    expected = np.eye(even.sum()) - KAPPA**2 * hopping[:, even][:, :, ~even] @ hopping[:, ~even][:, :, even]
    found = even_odd_matrix(field, KAPPA)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(found), np.linalg.det(dirac_matrix(field, KAPPA)), rtol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kappa", [0.0, 0.12, KAPPA])
def test_determinant_is_that_of_the_matrix(shape: tuple[int, int], kappa: float, rng: np.random.Generator) -> None:
    field = links(shape, rng)
    phase, expected = np.linalg.slogdet(np.stack([written_out(one, kappa) for one in field]))
    found = [
        log_determinant(field, kappa),
        log_determinant(torch.tensor(field), kappa),
        determinant_and_force(torch.tensor(field), kappa)[:2],
        determinant_and_force(field, kappa)[:2],
    ]
    if shape in COMPILED and kappa == KAPPA:
        found += [jax.jit(log_determinant, static_argnums=1)(field, kappa)]
        found += [jax.jit(determinant_and_force, static_argnums=1)(field, kappa)[:2]]
    for log_modulus, sign in found:
        np.testing.assert_allclose(log_modulus, expected, atol=1e-11)
        np.testing.assert_array_equal(sign, np.sign(phase.real))


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (3, 4), (2, 2)], ids=str)
def test_free_fermions(shape: tuple[int, int]) -> None:
    # Plane waves, of half-integer frequencies: D(p) = 1 − 2κ Σ cos p + 2iκ Σ γ sin p.
    time = 2 * np.pi * (np.arange(shape[0])[:, None] + 0.5) / shape[0]
    space = 2 * np.pi * np.arange(shape[1]) / shape[1]
    scalar = 1 - 2 * KAPPA * (np.cos(time) + np.cos(space))
    vector = 2 * KAPPA * np.sqrt(np.sin(time) ** 2 + np.sin(space) ** 2)
    field = np.zeros((1, *shape, 2))
    found = np.linalg.eigvals(dirac_matrix(field, KAPPA)[0])
    expected = np.concatenate([(scalar + 1j * vector).ravel(), (scalar - 1j * vector).ravel()])
    assert np.abs(found[:, None] - expected).min(axis=0).max() < 1e-7
    assert np.abs(found[:, None] - expected).min(axis=1).max() < 1e-7
    log_modulus = np.log(scalar**2 + vector**2).sum()
    np.testing.assert_allclose(log_determinant(field, KAPPA)[0], log_modulus, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (3, 4)], ids=str)
def test_the_boundary_is_antiperiodic_in_time_only(shape: tuple[int, int], rng: np.random.Generator) -> None:
    # It may lie in any time slice, and a sign of the links there makes it periodic; in space it is not there at all.
    field = links(shape, rng)
    expected = log_determinant(field, KAPPA)[0]
    for axis in (1, 2):
        np.testing.assert_allclose(log_determinant(np.roll(field, 1, axis), KAPPA)[0], expected, rtol=1e-11)
    for axis, direction in ((1, 0), (2, 1)):
        other = field.copy()
        np.moveaxis(other[..., direction], axis, 0)[1] += np.pi
        assert np.abs(log_determinant(other, KAPPA)[0] - expected).min() > 1e-6
    mirrored = np.swapaxes(field, 1, 2)[..., ::-1].copy()
    mirrored[:, -1, :, 0] += np.pi
    mirrored[:, :, -1, 1] += np.pi
    np.testing.assert_allclose(log_determinant(mirrored, KAPPA)[0], expected, rtol=1e-11)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)], ids=str)
def test_spectrum_is_gauge_invariant(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    other = gauge_transformed(field, rng.uniform(-np.pi, np.pi, (3, *shape)))
    for power in (2, 4, 6):
        traces = [
            np.trace(np.linalg.matrix_power(dirac_matrix(one, KAPPA), power), axis1=1, axis2=2)
            for one in (field, other)
        ]
        np.testing.assert_allclose(traces[1], traces[0], rtol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_force_is_the_slope(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    force = determinant_and_force(field, KAPPA).force
    direction = rng.standard_normal(field.shape)
    step = 1e-5
    above, below = (log_determinant(field + sign * step * direction, KAPPA)[0] for sign in (1, -1))
    np.testing.assert_allclose((force * direction).sum((1, 2, 3)), (above - below) / (2 * step), rtol=1e-6, atol=1e-7)
    leaf = torch.tensor(field, requires_grad=True)
    (slope,) = torch.autograd.grad(log_determinant(leaf, KAPPA)[0].sum(), leaf)
    np.testing.assert_allclose(force, slope.numpy(), atol=1e-10)
    np.testing.assert_allclose(force, determinant_and_force(torch.tensor(field), KAPPA).force, atol=1e-10)
    if shape in COMPILED:
        by_jax = jax.jit(jax.grad(lambda x: log_determinant(x, KAPPA)[0].sum()))(field)
        np.testing.assert_allclose(force, by_jax, atol=1e-10)
        in_jax = jax.jit(determinant_and_force, static_argnums=1)(field, KAPPA)
        np.testing.assert_allclose(force, in_jax.force, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4)], ids=str)
def test_single_precision_stays_single(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    exact = determinant_and_force(field, KAPPA)
    single = field.astype(np.float32)
    for one in (single, torch.tensor(single), jnp.asarray(single)):
        library = jax.jit if isinstance(one, jax.Array) else lambda function: function
        assert str(library(lambda x: dirac_matrix(x, KAPPA))(one).dtype).endswith("complex64")
        log_modulus, sign, force = library(lambda x: determinant_and_force(x, KAPPA))(one)
        assert str(log_modulus.dtype).endswith("float64")
        assert str(force.dtype).endswith("float32")
        np.testing.assert_allclose(log_modulus, exact.log_modulus, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(force, exact.force, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(sign, exact.sign)


def test_negative_determinants_have_their_sign(rng: np.random.Generator) -> None:
    # Rough fields and topological charge push real eigenvalues below zero.
    field = u1_draws(U1Gauge2D((8, 8), 2.0), rng, 400)
    log_modulus, sign = log_determinant(field, KAPPA)
    assert set(sign) == {-1.0, 1.0}
    some = np.concatenate([field[sign < 0][:3], field[sign > 0][:3]])
    matrices = np.stack([written_out(one, KAPPA) for one in some])
    found = determinant_and_force(some, KAPPA)
    for matrix, expected in zip(matrices, found.sign, strict=True):
        eigenvalues = np.linalg.eigvals(matrix)
        negative = (np.abs(eigenvalues.imag) < 1e-9) & (eigenvalues.real < 0)
        assert (-1) ** negative.sum() == expected
    for other in (
        determinant_and_force(torch.tensor(some), KAPPA),
        jax.jit(determinant_and_force, static_argnums=1)(some, KAPPA),
    ):
        np.testing.assert_array_equal(other.sign, found.sign)
        np.testing.assert_allclose(other.force, found.force, rtol=1e-6, atol=1e-8)
    assert np.isfinite(log_modulus).all()


def test_large_batches_of_torch_are_right_on_several_threads(rng: np.random.Generator) -> None:
    field = links((16, 16), rng, n=3)
    expected = determinant_and_force(field, KAPPA)
    assert determinants.LARGEST_BATCHED < 256
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        leaf = torch.tensor(field, requires_grad=True)
        log_modulus, sign = log_determinant(leaf, KAPPA)
        (slope,) = torch.autograd.grad(log_modulus.sum(), leaf)
        found = determinant_and_force(torch.tensor(field), KAPPA)
        assert len(list(determinants.unbatched(even_odd_matrix(torch.tensor(field), KAPPA)))) == 3
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(log_modulus.detach(), expected.log_modulus, rtol=1e-12)
    np.testing.assert_array_equal(sign.detach(), expected.sign)
    np.testing.assert_allclose(slope, expected.force, atol=1e-9)
    np.testing.assert_allclose(found.log_modulus, expected.log_modulus, rtol=1e-12)
    np.testing.assert_allclose(found.force, expected.force, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3, 4)], ids=str)
def test_propagator_is_the_inverse(shape: tuple[int, int], rng: np.random.Generator) -> None:
    field = links(shape, rng)
    inverse = propagator(field, KAPPA)
    assert inverse.shape == (3, *shape, 2, *shape, 2)
    size = 2 * shape[0] * shape[1]
    unit = dirac_matrix(field, KAPPA) @ inverse.reshape(3, size, size)
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(size), unit.shape), atol=1e-11)


def test_what_is_no_link_field_is_refused(rng: np.random.Generator) -> None:
    for wrong in (links((4, 4), rng)[0], rng.standard_normal((2, 4, 4)), rng.standard_normal((2, 4, 4, 3))):
        with pytest.raises(LatticeMismatchError, match="links"):
            log_determinant(wrong, KAPPA)
    with pytest.raises(LatticeMismatchError, match="spinor"):
        dirac_apply(links((4, 4), rng), KAPPA, np.ones((3, 4, 4), complex))
    with pytest.raises(ParameterError, match="odd"):
        even_odd_matrix(links((3, 4), rng), KAPPA)
