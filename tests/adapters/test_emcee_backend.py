"""Files of emcee: what emcee writes is read as emcee reads it, and what is written emcee reads and continues."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import emcee
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, NonFiniteError, ParameterError, RunExistsError
from flowmc_adapters.emcee_backend import BackendError, holds_backend, read_backend, write_backend
from flowmc_analysis.gamma import gamma_method

Array = NDArray[np.float64]


def normal(x: Array) -> Any:
    return -0.5 * (x**2).sum(), x[0], 2 * x[1]


def plain(x: Array) -> Array:
    log_p: Array = -0.5 * (x**2).sum(axis=1)
    return log_p


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run of emcee with blobs, whose file has room for more steps than were made."""
    path = tmp_path / "emcee.h5"
    backend = emcee.backends.HDFBackend(path)
    sampler = emcee.EnsembleSampler(5, 6, normal, moves=emcee.moves.GaussianMove(0.3), backend=backend)
    start = np.zeros((5, 6))
    for _ in zip(range(20), sampler.sample(start, iterations=50, skip_initial_state_check=True), strict=False):
        pass
    with h5py.File(path) as file:
        # emcee's generator was left in the middle, as by Ctrl-C.
        assert file["mcmc/chain"].shape[0] == 50
        assert file["mcmc"].attrs["iteration"] in (20, 21)
    return path


class TestReading:
    @pytest.mark.parametrize(("discard", "thin"), [(0, 1), (3, 1), (0, 4), (5, 3), (19, 1)])
    def test_is_what_emcee_reads(self, written: Path, discard: int, thin: int) -> None:
        theirs = emcee.backends.HDFBackend(written, read_only=True)
        ours = read_backend(written, event_shape=(2, 3), discard=discard, thin=thin)
        chain = theirs.get_chain(discard=discard, thin=thin)
        np.testing.assert_array_equal(ours.fields, chain.reshape(-1, 5, 2, 3))
        np.testing.assert_array_equal(ours.log_prob, theirs.get_log_prob(discard=discard, thin=thin))
        np.testing.assert_array_equal(ours.accepted, theirs.accepted)
        np.testing.assert_array_equal(ours.acceptance_fraction, theirs.accepted / theirs.iteration)
        np.testing.assert_array_equal(ours.steps, np.arange(1, theirs.iteration + 1)[discard + thin - 1 :: thin])
        assert (ours.n_steps, ours.version) == (theirs.iteration, emcee.__version__)
        assert ours.stored_dtype == np.dtype(np.float64)
        assert ours.blobs is None

    def test_blobs_on_request(self, written: Path) -> None:
        ours = read_backend(written, discard=2, thin=2, with_blobs=True)
        np.testing.assert_array_equal(
            ours.blobs, emcee.backends.HDFBackend(written, read_only=True).get_blobs(discard=2, thin=2)
        )
        assert ours.fields.shape[2:] == (6,)

    def test_single_precision_becomes_double(self, tmp_path: Path) -> None:
        backend = emcee.backends.HDFBackend(tmp_path / "single.h5", name="run", dtype=np.float32)
        sampler = emcee.EnsembleSampler(4, 1, plain, backend=backend, vectorize=True)
        sampler.run_mcmc(np.linspace(0, 1, 4)[:, None], 5)
        found = read_backend(tmp_path / "single.h5", name="run")
        assert found.stored_dtype == np.dtype(np.float32)
        assert found.fields.dtype == np.float64

    def test_other_shapes_and_choices_are_refused(self, written: Path) -> None:
        with pytest.raises(LatticeMismatchError, match="8"):
            read_backend(written, event_shape=(2, 4))
        for discard, thin in ((-1, 1), (0, 0), (40, 1)):
            with pytest.raises(ParameterError):
                read_backend(written, discard=discard, thin=thin)


class TestBrokenFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="no file"):
            read_backend(tmp_path / "none.h5")
        assert not holds_backend(tmp_path / "none.h5")

    @pytest.mark.parametrize("kept", [0.9, 0.5])
    def test_truncated(self, written: Path, kept: float) -> None:
        content = written.read_bytes()
        written.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(BackendError, match="shorter than its own header"):
            read_backend(written)

    @pytest.mark.parametrize("content", [b"", b"no HDF5 at all"])
    def test_another_format(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "other.h5").write_bytes(content)
        with pytest.raises(BackendError, match="an HDF5 file of emcee"):
            read_backend(tmp_path / "other.h5")
        assert not holds_backend(tmp_path / "other.h5")

    def test_another_program(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["mcmc/data"] = np.zeros(3)
        with pytest.raises(BackendError, match="HDFBackend wrote"):
            read_backend(tmp_path / "other.h5")
        assert not holds_backend(tmp_path / "other.h5")

    def test_another_name(self, written: Path) -> None:
        with pytest.raises(BackendError, match=r"\['mcmc'\]"):
            read_backend(written, name="run")

    def test_without_steps(self, tmp_path: Path) -> None:
        backend = emcee.backends.HDFBackend(tmp_path / "empty.h5")
        backend.reset(4, 2)
        backend.grow(10, None)
        with pytest.raises(BackendError, match="without steps"):
            read_backend(tmp_path / "empty.h5")

    def test_fewer_rows_than_steps(self, written: Path) -> None:
        with h5py.File(written, "a") as file:
            file["mcmc/log_prob"].resize(10, axis=0)
        with pytest.raises(BackendError, match="a row for every step"):
            read_backend(written)

    def test_held_by_a_writer(self, written: Path) -> None:
        with written.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(BackendError, match="another process holds"):
                read_backend(written)

    def test_coordinates_that_are_not_finite(self, written: Path) -> None:
        with h5py.File(written, "a") as file:
            file["mcmc/chain"][3, 1, 2] = np.nan
        with pytest.raises(NonFiniteError):
            read_backend(written)
        assert len(read_backend(written, discard=4).fields)


class TestWriting:
    @pytest.fixture
    def fields(self, rng: np.random.Generator) -> Array:
        """An AR(1) process, so that there is an autocorrelation time; one walker in three repeats itself."""
        noise = rng.standard_normal((4000, 6, 2, 2))
        fields = np.empty_like(noise)
        fields[0] = noise[0]
        for i in range(1, len(noise)):
            stays = (np.arange(6) + i) % 3 == 0
            moved = 0.8 * fields[i - 1] + 0.6 * noise[i]
            fields[i] = np.where(stays[:, None, None], fields[i - 1], moved)
        return fields

    def test_emcee_reads_it(self, tmp_path: Path, fields: Array) -> None:
        log_prob = plain(fields.reshape(-1, 4)).reshape(fields.shape[:2])
        write_backend(tmp_path / "ours.h5", fields, log_prob, attributes={"flowmc_theory": "free_scalar"})
        backend = emcee.backends.HDFBackend(tmp_path / "ours.h5", read_only=True)
        np.testing.assert_array_equal(backend.get_chain(), fields.reshape(4000, 6, 4))
        np.testing.assert_array_equal(backend.get_log_prob(), log_prob)
        assert (backend.shape, backend.iteration, backend.has_blobs()) == ((6, 4), 4000, False)
        # A third of the 3999 steps after the first repeats the one before.
        np.testing.assert_allclose(backend.accepted / backend.iteration, 2 / 3, atol=1e-3)
        assert [item.name for item in tmp_path.iterdir()] == ["ours.h5"]

    def test_autocorrelation_times_differ_by_the_factor_two(self, tmp_path: Path, fields: Array) -> None:
        write_backend(tmp_path / "ours.h5", fields, np.zeros(fields.shape[:2]))
        theirs = emcee.backends.HDFBackend(tmp_path / "ours.h5", read_only=True).get_autocorr_time()
        chain = read_backend(tmp_path / "ours.h5").fields
        for k in range(4):
            ours = gamma_method(chain[..., k].T).estimate
            assert ours.tau_int > 3
            assert abs(theirs[k] - 2 * ours.tau_int) < 5 * 2 * ours.tau_int_error

    def test_emcee_continues_it(self, tmp_path: Path, fields: Array) -> None:
        log_prob = plain(fields.reshape(-1, 4)).reshape(fields.shape[:2])
        ends: list[Array] = []
        for seed in (1, 1, 2):
            path = tmp_path / f"{len(ends)}.h5"
            write_backend(path, fields[:10], log_prob[:10], seed=seed)
            backend = emcee.backends.HDFBackend(path)
            move = emcee.moves.GaussianMove(0.1)
            sampler = emcee.EnsembleSampler(6, 4, plain, backend=backend, moves=move, vectorize=True)
            ends.append(sampler.run_mcmc(None, 15, skip_initial_state_check=True).coords)
            chain = backend.get_chain()
            assert chain.shape == (25, 6, 4)
            np.testing.assert_array_equal(chain[:10], fields[:10].reshape(10, 6, 4))
            assert np.abs(chain[10] - chain[9]).max() < 3
            found = read_backend(path)
            np.testing.assert_allclose(found.log_prob, plain(chain.reshape(-1, 4)).reshape(25, 6))
        np.testing.assert_array_equal(ends[0], ends[1])
        assert not np.array_equal(ends[0], ends[2])

    def test_stretch_moves_continue_it(self, tmp_path: Path, fields: Array) -> None:
        one = fields[:50, :, 0, :1]
        write_backend(tmp_path / "ours.h5", one, plain(one.reshape(-1, 1)).reshape(50, 6), name="run")
        backend = emcee.backends.HDFBackend(tmp_path / "ours.h5", name="run")
        emcee.EnsembleSampler(6, 1, plain, backend=backend, vectorize=True).run_mcmc(None, 20)
        assert backend.iteration == 70

    def test_round_trip(self, tmp_path: Path, fields: Array) -> None:
        write_backend(tmp_path / "ours.h5", fields[:20], np.full((20, 6), -np.inf), accepted=np.arange(6.0))
        found = read_backend(tmp_path / "ours.h5", event_shape=(2, 2))
        np.testing.assert_array_equal(found.fields, fields[:20])
        np.testing.assert_array_equal(found.accepted, np.arange(6.0))
        assert np.isneginf(found.log_prob).all()
        assert holds_backend(tmp_path / "ours.h5")

    def test_nothing_is_overwritten(self, tmp_path: Path, fields: Array) -> None:
        (tmp_path / "mine.h5").write_bytes(b"precious")
        with pytest.raises(RunExistsError):
            write_backend(tmp_path / "mine.h5", fields, np.zeros(fields.shape[:2]))
        assert (tmp_path / "mine.h5").read_bytes() == b"precious"

    def test_what_does_not_fit_is_refused(self, tmp_path: Path, fields: Array) -> None:
        path, log_prob = tmp_path / "ours.h5", np.zeros(fields.shape[:2])
        with pytest.raises(LatticeMismatchError):
            write_backend(path, fields, log_prob[1:])
        with pytest.raises(LatticeMismatchError):
            write_backend(path, fields[:0], log_prob[:0])
        with pytest.raises(LatticeMismatchError, match="accepted"):
            write_backend(path, fields, log_prob, accepted=np.zeros(5))
        with pytest.raises(NonFiniteError):
            write_backend(path, np.full_like(fields, np.nan), log_prob)
        with pytest.raises(NonFiniteError):
            write_backend(path, fields, log_prob + np.nan)
        assert not list(tmp_path.iterdir())
