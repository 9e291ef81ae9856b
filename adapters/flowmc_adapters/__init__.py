"""Adapters to foreign libraries: one library per file, imported inside that file's functions.

There is none yet; the package holds their place, so that `flowmc` itself never imports a foreign sampler.
"""

from __future__ import annotations

__all__: list[str] = []
