"""Shared fixtures: generators seeded from the test's own id, so that a failure repeats and tests are independent."""

from __future__ import annotations

import os
import zlib

# Before anything imports torch or JAX, as the command line does.
os.environ["JAX_ENABLE_X64"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import numpy as np
import pytest

pytest.register_assert_rewrite("flowmc.testing")


@pytest.fixture
def test_seed(request: pytest.FixtureRequest) -> int:
    """A seed made from the test's node id: never tuned, the same every day."""
    return zlib.crc32(request.node.nodeid.encode())


@pytest.fixture
def rng(test_seed: int) -> np.random.Generator:
    return np.random.default_rng(test_seed)
