"""Counter-based seeds: every random number of a run follows from the run's seed and a few counters.

No generator is carried along, pickled or shared: batch number 17 holds the same numbers whether the run was
interrupted before it or not, and whatever other parts of the run have drawn.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import torch

__all__ = ["fold", "jax_key", "numpy_generator", "torch_generator"]


def fold(seed: int, *counters: int | str) -> int:
    """Derive a seed from a seed and counters or labels.

    Parameters
    ----------
    seed
        The run's seed, any integer.
    counters
        Integers or labels that name the place of use, for example ``("proposal", 17)``.

    Returns
    -------
    An integer in [0, 2⁶³), independent for all practical purposes of that of any other argument list (BLAKE2b).

    >>> fold(1, "proposal", 17) == fold(1, "proposal", 17)
    True
    >>> len({fold(1), fold(1, 0), fold(1, "0"), fold(1, 0, 0), fold(2)})
    5
    """
    # repr keeps 0 and "0" apart, and the tuple's commas keep (1, 23) and (12, 3) apart.
    digest = hashlib.blake2b(repr((int(seed), *counters)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(seed: int, *counters: int | str) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for the folded seed."""
    return np.random.Generator(np.random.Philox(fold(seed, *counters)))


def torch_generator(seed: int, *counters: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on a device for the folded seed; torch's global state is left alone."""
    return torch.Generator(device=device).manual_seed(fold(seed, *counters))


def jax_key(seed: int, *counters: int | str) -> jax.Array:
    """Return a typed JAX key for the folded seed."""
    folded = fold(seed, *counters)
    # A JAX key takes 32 bits at a time unless x64 is on; two halves give the same key either way.
    return jax.random.fold_in(jax.random.key(folded & 0x7FFFFFFF), folded >> 31)
