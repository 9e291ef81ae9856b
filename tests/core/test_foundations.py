"""Geometry, seeds, errors and the reasons to stop."""

from __future__ import annotations

import os
import pickle
import signal
import time

import jax
import numpy as np
import pytest
import torch

from flowmc import errors, seeds
from flowmc.arrays import check_finite
from flowmc.errors import FlowmcError, NonFiniteError, ParameterError
from flowmc.lattice import checked_shape, checkerboard, momentum_squared
from flowmc.stopping import Stopper


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4)])
def test_momenta_are_eigenvalues_of_the_laplacian(shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    identity = np.eye(size).reshape(size, *shape)
    axes = range(1, len(shape) + 1)
    laplacian = sum(2 * identity - np.roll(identity, 1, axis) - np.roll(identity, -1, axis) for axis in axes)
    eigenvalues = np.linalg.eigvalsh(np.asarray(laplacian).reshape(size, size))
    np.testing.assert_allclose(np.sort(momentum_squared(shape).ravel()), eigenvalues, atol=1e-12)


def test_neighbours_have_the_other_colour() -> None:
    even = checkerboard((4, 6))
    for axis in (0, 1):
        np.testing.assert_array_equal(np.roll(even, 1, axis), ~even)


@pytest.mark.parametrize("shape", [(), (4, 1), (4, 0), (4, 2.0), (True, 4)])
def test_shapes_that_are_none_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        checked_shape(shape)


def test_generators_repeat_and_differ() -> None:
    one, other = seeds.numpy_generator(1, "a", 2), seeds.numpy_generator(1, "a", 2)
    np.testing.assert_array_equal(one.random(4), other.random(4))
    assert seeds.numpy_generator(1, "a", 3).random() != seeds.numpy_generator(1, "a", 2).random()
    assert torch.rand(1, generator=seeds.torch_generator(1, 2)) == torch.rand(1, generator=seeds.torch_generator(1, 2))
    keys = [jax.random.key_data(seeds.jax_key(1, counter)) for counter in range(50)]
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 50


def test_key_does_not_depend_on_x64() -> None:
    with_x64 = np.asarray(jax.random.key_data(seeds.jax_key(2**40, "hmc", 7)))
    jax.config.update("jax_enable_x64", False)  # type: ignore[no-untyped-call]
    try:
        without = np.asarray(jax.random.key_data(seeds.jax_key(2**40, "hmc", 7)))
    finally:
        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(with_x64, without)


def test_every_error_says_got_expected_and_fix() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, FlowmcError)
        error = kind(got="a", expected="b", fix="c")
        assert str(error) == "got: a\nexpected: b\nfix: c"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert again.fix == "c"


def test_check_finite_counts() -> None:
    check_finite(np.zeros(3), "action", "none needed")
    with pytest.raises(NonFiniteError, match="2 of 4"):
        check_finite(np.array([0, np.nan, np.inf, 1]), "action", "look")


class TestStopper:
    def test_no_reason_without_limit(self) -> None:
        assert Stopper()() == ""

    def test_limit_counts_the_next_stretch(self) -> None:
        stopper = Stopper(max_minutes=0.1 / 60)
        assert stopper() == ""
        time.sleep(0.06)
        # As long again would end after the limit.
        assert "wall-time limit" in stopper()
        assert "wall-time limit" in stopper()
        assert stopper.exit_status == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_ask_for_a_clean_stop(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with Stopper() as stopper:
            os.kill(os.getpid(), number)
            assert number.name in stopper()
            assert stopper.exit_status == 128 + number
        assert signal.getsignal(number) is before

    def test_second_interrupt_is_at_once(self) -> None:
        with Stopper():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    @pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
    def test_meaningless_limits_are_refused(self, limit: float) -> None:
        with pytest.raises(ParameterError):
            Stopper(limit)
