from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from flowmc_ensembles import checksums
from flowmc_ensembles.checksums import crc32_rows, scidac_checksums


def rotate_left(value: int, count: int) -> int:
    return ((value << count) | (value >> (32 - count))) & 0xFFFFFFFF


def scidac_by_definition(configuration: np.ndarray, n_lattice_axes: int) -> tuple[int, int]:
    """Site by site with `zlib.crc32`, as the definition says."""
    suma = sumb = 0
    n_sites = math.prod(configuration.shape[:n_lattice_axes])
    for rank, site in enumerate(configuration.reshape(n_sites, -1)):
        crc = zlib.crc32(site.astype(site.dtype.newbyteorder(">")).tobytes())
        suma ^= rotate_left(crc, rank % 29)
        sumb ^= rotate_left(crc, rank % 31)
    return suma, sumb


@pytest.mark.parametrize("length", [0, 1, 3, 8, 16, 576, 5000])
def test_crc_is_zlibs(length: int, rng: np.random.Generator) -> None:
    rows = rng.integers(0, 256, (7, length), dtype=np.uint8)
    assert crc32_rows(rows).tolist() == [zlib.crc32(row.tobytes()) for row in rows]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int8, np.complex128])
@pytest.mark.parametrize(
    ("lattice", "internal"), [((8, 8), ()), ((3, 5, 7), ()), ((4, 6), (2,)), ((40,), ()), ((), (5,))]
)
def test_scidac_checksums_follow_the_definition(
    dtype: type, lattice: tuple[int, ...], internal: tuple[int, ...], rng: np.random.Generator
) -> None:
    fields: np.ndarray = (100 * rng.normal(size=(3, 2, *lattice, *internal))).astype(dtype)
    suma, sumb = scidac_checksums(fields, 2, len(lattice))
    expected = [[scidac_by_definition(chain, len(lattice)) for chain in row] for row in fields]
    assert np.array_equal(np.stack([suma, sumb], axis=-1), np.array(expected))


def test_batches_change_nothing(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = rng.normal(size=(7, 3, 4, 4))
    whole = scidac_checksums(fields, 2, 2)
    monkeypatch.setattr(checksums, "_BATCH_BYTES", 2 * fields[0, 0].nbytes)
    assert np.array_equal(scidac_checksums(fields, 2, 2), whole)


def test_any_flipped_bit_and_any_exchange_of_sites_is_seen(rng: np.random.Generator) -> None:
    field = rng.normal(size=(1, 4, 4))
    before = scidac_checksums(field, 1, 2)
    for k in range(field.nbytes):
        changed = field.copy()
        changed.view(np.uint8).reshape(-1)[k] ^= np.uint8(1 << int(rng.integers(8)))
        assert all(a != b for a, b in zip(scidac_checksums(changed, 1, 2), before, strict=True))
    assert scidac_checksums(field.transpose(0, 2, 1), 1, 2)[0] != before[0]


def test_byte_order_in_memory_does_not_matter(rng: np.random.Generator) -> None:
    fields = rng.normal(size=(2, 3, 4))
    assert np.array_equal(scidac_checksums(fields.astype(">f8"), 1, 2), scidac_checksums(fields, 1, 2))
