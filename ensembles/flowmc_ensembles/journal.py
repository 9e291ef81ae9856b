"""A copy-on-write overlay of a file, and the redo journal that makes its changes all-or-nothing.

HDF5 writes its metadata in many small pieces, so a process killed while it flushes can leave a file that does not
open. Here HDF5 never writes to the file: it writes to an overlay in memory (`OverlayFile`), and
`flowmc_ensembles.transaction` puts the overlay's changes into the file through a `Journal`, which holds every changed
page of the old part of the file with its CRC-32 before and after. A journal can be applied any number of times, and
one that lies beside a file that is not its own is recognised by the CRCs.

References
----------
.. [1] J. Gray and A. Reuter, Transaction Processing: Concepts and Techniques (1993), redo logging.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["Journal", "OverlayFile", "read_exactly", "write_all"]

_PAGE = 4096
_MAGIC = b"flowmcJ1"
_HEADER = struct.Struct("<8sQQQI")  # magic, size before, size after, number of pages, CRC-32 of all that follows
_ENTRY = struct.Struct("<QII")  # page number, CRC-32 before, length in bytes; then the page


def read_exactly(descriptor: int, n: int, offset: int) -> bytes:
    """Up to ``n`` bytes at ``offset``; fewer only at the end of the file."""
    pieces = []
    while n > 0 and (piece := os.pread(descriptor, n, offset)):
        pieces.append(piece)
        n -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def write_all(descriptor: int, data: ReadableBuffer, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data).cast("B")
    while view:
        n = os.pwrite(descriptor, view, offset)
        view = view[n:]
        offset += n


@dataclass(frozen=True)
class Journal:
    """Changes of the old part of a file.

    Parameters
    ----------
    size_before, size_after
        Length of the file in bytes before and after the transaction.
    pages
        Changed pages by number: CRC-32 before the change, and the new content (the last page may be short).
    """

    size_before: int
    size_after: int
    pages: dict[int, tuple[int, bytes]]

    def encode(self) -> bytes:
        """Content of the journal file."""
        body = b"".join(
            _ENTRY.pack(number, before, len(page)) + page for number, (before, page) in sorted(self.pages.items())
        )
        return _HEADER.pack(_MAGIC, self.size_before, self.size_after, len(self.pages), zlib.crc32(body)) + body

    @classmethod
    def decode(cls, content: bytes) -> Journal | None:
        """Journal of a journal file; None when it is empty, incomplete or damaged."""
        if len(content) < _HEADER.size:
            return None
        magic, size_before, size_after, n_pages, crc = _HEADER.unpack_from(content)
        if magic != _MAGIC or zlib.crc32(content[_HEADER.size :]) != crc:
            return None
        pages = {}
        position = _HEADER.size
        for _ in range(n_pages):
            number, before, length = _ENTRY.unpack_from(content, position)
            position += _ENTRY.size
            pages[number] = (before, content[position : position + length])
            position += length
        return cls(size_before, size_after, pages)

    def belongs_to(self, descriptor: int) -> bool:
        """Whether every page of the file is one of this journal's, before or after the change."""
        size = os.fstat(descriptor).st_size
        if size not in {max(self.size_before, self.size_after), self.size_after}:
            return False
        for number, (before, page) in self.pages.items():
            present = read_exactly(descriptor, len(page), number * _PAGE)
            cut_off = number * _PAGE + len(page) > size  # only once every page is in place
            if not cut_off and zlib.crc32(present) not in {before, zlib.crc32(page)}:
                return False
        return True

    def apply(self, descriptor: int) -> None:
        """Put the pages in place and cut the file to its new length."""
        for offset, content in self._runs():
            write_all(descriptor, content, offset)
        if os.fstat(descriptor).st_size != self.size_after:
            os.ftruncate(descriptor, self.size_after)

    def _runs(self) -> Iterator[tuple[int, bytes]]:
        """Offset and content of every run of consecutive pages."""
        numbers = sorted(self.pages)
        # Consecutive numbers keep a constant distance from their rank.
        for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            members = [number for _, number in run]
            yield members[0] * _PAGE, b"".join(self.pages[number][1] for number in members)


class OverlayFile(io.RawIOBase):
    """A file as it would be after some changes, which are kept in memory.

    Parameters
    ----------
    descriptor
        Open file descriptor of the file below; it is read, never written.
    journal
        Changes to begin with: those of an interrupted transaction, for a reader that may not finish it.
    """

    def __init__(self, descriptor: int, journal: Journal | None = None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._base = os.fstat(descriptor).st_size
        self._size = self._base if journal is None else journal.size_after
        self._before: dict[int, int] = {}
        self._pages: dict[int, bytearray] = {}
        if journal is not None:
            self._pages = {number: bytearray(page) for number, (_, page) in journal.pages.items()}
        self._tail = bytearray()
        self._position = 0
        self.failure: BaseException | None = None  # of the last change that was not made, for example MemoryError

    @property
    def tail(self) -> bytes:
        """What lies past the old end of file."""
        return bytes(self._tail[: max(0, self._size - self._base)])

    def journal(self) -> Journal:
        """Make the journal of the changes to the old part of the file."""
        pages = {number: (self._before[number], bytes(page)) for number, page in self._pages.items()}
        return Journal(self._base, self._size, pages)

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes, in memory."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move as ``io.RawIOBase.seek`` does."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Present position in bytes."""
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` from the present position; fewer bytes only at the end of the file."""
        view = memoryview(buffer).cast("B")
        start = self._position
        n = max(0, min(len(view), self._size - start))
        stop = start + n
        below = min(stop, self._base)
        if start < below:
            old = read_exactly(self._descriptor, below - start, start)
            view[: len(old)] = old
            for number in self._touched(start, below):
                page = self._pages.get(number)
                if page is not None:
                    offset = number * _PAGE
                    low, high = max(start, offset), min(below, offset + len(page))
                    view[low - start : high - start] = page[low - offset : high - offset]
        if stop > self._base:
            low = max(start, self._base)
            view[low - start : n] = self._tail[low - self._base : stop - self._base]
        self._position = stop
        return n

    def write(self, data: ReadableBuffer) -> int:
        """Change the overlay at the present position."""
        try:
            return self._write(data)
        except BaseException as error:  # noqa: BLE001 - HDF5 cannot back out of a close; the commit raises it
            self.failure = error
            return memoryview(data).nbytes

    def _write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        start, stop = self._position, self._position + len(view)
        below = min(stop, self._base)
        if start < below:
            for number in self._touched(start, below):
                page = self._page(number)
                offset = number * _PAGE
                low, high = max(start, offset), min(below, offset + len(page))
                page[low - offset : high - offset] = view[low - start : high - start]
        if stop > self._base:
            low = max(start, self._base)
            missing = low - self._base - len(self._tail)
            if missing > 0:
                self._tail.extend(bytes(missing))
            self._tail[low - self._base : stop - self._base] = view[low - start :]
        self._size = max(self._size, stop)
        self._position = stop
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the length; new bytes are zero."""
        self._size = self._position if size is None else size
        length = max(0, self._size - self._base)
        del self._tail[length:]
        self._tail.extend(bytes(length - len(self._tail)))
        return self._size

    @staticmethod
    def _touched(start: int, stop: int) -> range:
        return range(start // _PAGE, (stop - 1) // _PAGE + 1)

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            offset = number * _PAGE
            old = read_exactly(self._descriptor, min(_PAGE, self._base - offset), offset)
            self._before[number] = zlib.crc32(old)
            self._pages[number] = bytearray(old)
        return self._pages[number]
