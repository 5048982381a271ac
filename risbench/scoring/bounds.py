"""Values that a metric can have: types for the files that hold metrics, so that an impossible number is refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

_ROUNDING = 1e-9  # resampled values are floats
Percent = Annotated[float, Field(ge=0, le=100 + _ROUNDING, allow_inf_nan=False)]


def _rises(ends: list[float]) -> list[float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the low end {ends[0]} of an interval lies above its high end {ends[1]}")
    return ends


Ends = Annotated[list[Percent], Field(min_length=2, max_length=2), AfterValidator(_rises)]
