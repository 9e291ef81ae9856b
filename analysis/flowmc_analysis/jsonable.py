"""Numbers for JSON, which knows neither NaN nor infinity."""

from __future__ import annotations

import math

__all__ = ["json_number"]


def json_number(x: float) -> float | None:
    """Give ``x``, or ``None`` where it is NaN or infinite.

    Examples
    --------
    >>> json_number(0.5), json_number(float("nan"))
    (0.5, None)
    """
    return float(x) if math.isfinite(x) else None
