"""Autocovariance, summation windows and the error of the autocorrelation: the numerical parts of the Γ-method.

Formulas and references are those of `flowmc_analysis.gamma`. Lags are computed one by one while the
automatic window may still be small, a pass over the data each, and all at once by Fourier transform after that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft

__all__ = ["automatic_window", "bartlett_error", "tail_window", "tau_of_window", "windowed_autocovariance"]

Array = npt.NDArray[np.float64]

# A direct lag costs one pass over the data, the Fourier transform as much as some tens of them.
_DIRECT_LAGS = 64
_FOURIER_BLOCK = 2**22


def windowed_autocovariance(fluctuations: Array, s: float, w_max: int, all_lags: bool) -> tuple[Array, int, bool]:
    """Autocovariance up to about twice the automatic window, the window, and whether there was one."""
    total = fluctuations.size
    gamma = np.empty(0)
    if not all_lags:
        n_lags = 8
        while n_lags < min(w_max, _DIRECT_LAGS):
            gamma = np.concatenate([gamma, _direct_lags(fluctuations, gamma.size, n_lags)])
            window = automatic_window(gamma / gamma[0], s, total)
            if window is not None:
                wanted = min(w_max, 2 * window + 10)
                return np.concatenate([gamma, _direct_lags(fluctuations, gamma.size, wanted)]), window, True
            n_lags *= 2
    gamma = _fourier_lags(fluctuations, w_max)
    window = automatic_window(gamma / gamma[0], s, total)
    return gamma, w_max - 1 if window is None else window, window is not None


def _direct_lags(fluctuations: Array, start: int, stop: int) -> Array:
    chains, length = fluctuations.shape
    # Not BLAS: its threads make a dot product of this length slower, and ten times so beside a busy neighbour.
    sums = [
        np.einsum("ct,ct->", fluctuations[:, : length - t], fluctuations[:, t:]) / (chains * (length - t))
        for t in range(start, stop)
    ]
    return np.array(sums)


def _fourier_lags(fluctuations: Array, n_lags: int) -> Array:
    chains, length = fluctuations.shape
    padded = scipy.fft.next_fast_len(length + n_lags, real=True)
    block = max(1, _FOURIER_BLOCK // padded)
    power = np.zeros(padded // 2 + 1)
    for first in range(0, chains, block):  # blocks bound the memory of the padded transforms
        transform = scipy.fft.rfft(fluctuations[first : first + block], padded)
        power += np.sum(transform.real**2 + transform.imag**2, axis=0)
    sums = scipy.fft.irfft(power, padded)[:n_lags]
    return np.asarray(sums / (chains * (length - np.arange(n_lags))), dtype=np.float64)


def tau_of_window(rho: Array) -> Array:
    """``1/2 + sum_{1 <= t <= W} rho(t)`` for every window, without bias correction."""
    return np.asarray(np.cumsum(rho) - 0.5, dtype=np.float64)


def automatic_window(rho: Array, s: float, total: int) -> int | None:
    """First lag at which the noise of the sum outweighs its truncation, or ``None`` (Wolff's procedure)."""
    tau = np.maximum(tau_of_window(rho)[1:], 0.5 + np.finfo(np.float64).eps)
    windows = np.arange(1, rho.size)
    tau_w = s / np.log((2 * tau + 1) / (2 * tau - 1))
    closed = np.flatnonzero(np.exp(-windows / tau_w) < tau_w / np.sqrt(windows * total))
    return int(windows[closed[0]]) if closed.size else None


def tail_window(rho: Array, n_sigma: float, window: int, total: int) -> tuple[int, bool, Array]:
    """First lag at which rho is insignificant, whether there is one, and the errors of rho on the lags used."""
    n_lags = min(rho.size, 2 * window + 10)
    while True:
        rho_error = bartlett_error(rho[:n_lags], total)
        last = n_lags - 2  # the tail needs the next lag
        insignificant = np.flatnonzero(rho[1 : last + 1] < n_sigma * rho_error[1 : last + 1])
        # The errors take rho as zero from n_lags on, so the lag must lie well before.
        if insignificant.size and (insignificant[0] + 1 <= n_lags // 2 or n_lags == rho.size):
            return int(insignificant[0]) + 1, True, rho_error
        if n_lags == rho.size:
            return max(last, 0), False, rho_error
        n_lags = min(rho.size, 2 * n_lags)


def bartlett_error(rho: Array, total: int) -> Array:
    """Bartlett's formula for a symmetric rho that vanishes from ``len(rho)`` on.

    With ``A(s) = sum_k rho(k) rho(k+s)`` over all integers the sum of squares is ``A(0)(1 + 2 rho(t)^2) + A(2t) -
    4 rho(t) A(t)``: one convolution in place of a double loop.
    """
    n_lags = rho.size
    symmetric = np.concatenate([rho[:0:-1], rho])
    padded = scipy.fft.next_fast_len(2 * symmetric.size, real=True)
    transform = scipy.fft.rfft(symmetric, padded)
    overlap = scipy.fft.irfft(transform.real**2 + transform.imag**2, padded)
    lags = np.arange(n_lags)
    squares = overlap[0] * (1 + 2 * rho**2) + overlap[2 * lags] - 4 * rho * overlap[lags]
    result = np.sqrt(np.maximum(squares, 0.0) / total)
    result[0] = 0.0
    return np.asarray(result, dtype=np.float64)
