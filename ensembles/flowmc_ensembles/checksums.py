r"""SciDAC checksums of configurations, for many configurations at once.

The checksum of ILDG/SciDAC files: with :math:`c_x` the CRC-32 of the bytes of site :math:`x` as stored
(big-endian), and :math:`r` the rank of the site in lexicographic order, x fastest,

.. math:: \mathrm{suma} = \bigoplus_x \mathrm{rotl}_{32}(c_x, r \bmod 29), \qquad
          \mathrm{sumb} = \bigoplus_x \mathrm{rotl}_{32}(c_x, r \bmod 31).

CRC-32 is affine over GF(2): for messages :math:`m` of one length :math:`L`, :math:`\mathrm{crc}(m) = \mathrm{crc}(0)
\oplus \bigoplus_k T_k[m_k]` with one 256-entry table per byte position. So the CRC of every site of a whole block is
:math:`L` table look-ups on long arrays, with no Python loop over sites.

References
----------
.. [1] ScidacChecksum in BinaryIO.h of the Grid library, https://github.com/paboyle/Grid
.. [2] D. V. Sarwate, Computation of cyclic redundancy checks via table look-up, Commun. ACM 31 (1988) 1008.
"""

from __future__ import annotations

import functools
import math
import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["crc32_rows", "scidac_checksums"]

# Above this length a table per byte position costs more memory than it saves time.
_LONGEST_TABULATED_MESSAGE = 4096
# Configurations are taken in parts of about this size, so that a gigabyte to verify needs no further gigabytes.
_BATCH_BYTES = 16_777_216


@functools.lru_cache(maxsize=8)
def _tables(length: int) -> npt.NDArray[np.uint32]:
    """CRC contributions of byte ``k`` with value ``v`` in a message of ``length`` bytes, shape ``(length, 256)``."""
    zero = zlib.crc32(bytes(length))
    tables = np.empty((length, 256), dtype=np.uint32)
    # A byte followed by n zero bytes: advance the last position's table one zero byte at a time.
    last = np.array([zlib.crc32(bytes(length - 1) + bytes([value])) ^ zero for value in range(256)], dtype=np.uint32)
    tables[length - 1] = last
    for position in range(length - 2, -1, -1):
        later = tables[position + 1]
        tables[position] = last[later & 0xFF] ^ (later >> np.uint32(8))
    return tables


def crc32_rows(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """CRC-32 (as ``zlib.crc32``) of every row.

    Parameters
    ----------
    rows
        Messages of equal length in bytes, shape ``(n, length)``.

    Returns
    -------
    Checksums, shape ``(n,)``.

    Examples
    --------
    >>> import zlib
    >>> rows = np.frombuffer(b"phi4u(1)", dtype=np.uint8).reshape(2, 4)
    >>> [int(c) for c in crc32_rows(rows)] == [zlib.crc32(b"phi4"), zlib.crc32(b"u(1)")]
    True
    """
    n, length = rows.shape
    if length > _LONGEST_TABULATED_MESSAGE:
        return np.array([zlib.crc32(row) for row in np.ascontiguousarray(rows)], dtype=np.uint32)
    checksums = np.full(n, zlib.crc32(bytes(length)), dtype=np.uint32)
    if length:
        for table, column in zip(_tables(length), np.ascontiguousarray(rows.T), strict=True):
            checksums ^= table[column]
    return checksums


def _rotate_left(values: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    # Counts below 32. A 32-bit shift by 32 is undefined, so the right shift is taken modulo 32: v | v = v for count 0.
    return (values << counts) | (values >> ((np.uint32(32) - counts) % np.uint32(32)))


def scidac_checksums(
    fields: npt.NDArray[np.generic], n_batch_axes: int, n_lattice_axes: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """SciDAC checksum pair of every configuration.

    Parameters
    ----------
    fields
        Configurations of shape ``(*batch, *lattice, *internal)``, any fixed-size numeric type; the checksum is of the
        big-endian bytes of the internal components of each site.
    n_batch_axes
        Number of leading axes that count configurations.
    n_lattice_axes
        Number of lattice axes after them, slowest first; 0 for a theory on a single site.

    Returns
    -------
    ``(suma, sumb)``, each of the batch shape.
    """
    batch = fields.shape[:n_batch_axes]
    n_sites = math.prod(fields.shape[n_batch_axes : n_batch_axes + n_lattice_axes])
    n_components = math.prod(fields.shape[n_batch_axes + n_lattice_axes :])
    site_bytes = n_components * fields.dtype.itemsize
    configurations = fields.reshape(math.prod(batch), n_sites, n_components)
    rank = np.arange(n_sites)
    checksums = np.empty((2, len(configurations)), dtype=np.uint32)
    step = max(1, _BATCH_BYTES // max(1, n_sites * site_bytes))
    for start in range(0, len(configurations), step):
        part = configurations[start : start + step]
        stored = np.ascontiguousarray(part, dtype=fields.dtype.newbyteorder(">"))
        site_crc = crc32_rows(stored.view(np.uint8).reshape(-1, site_bytes)).reshape(len(part), n_sites)
        for which, period in enumerate((29, 31)):
            rotated = _rotate_left(site_crc, (rank % period).astype(np.uint32))
            checksums[which, start : start + step] = np.bitwise_xor.reduce(rotated, axis=1)
    return checksums[0].reshape(batch), checksums[1].reshape(batch)
