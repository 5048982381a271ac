"""Scenes of mini: polygons of any mask."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from risbench.data import rle
from risbench.data.mini.scene import trace_polygons


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_polygons_of_any_mask_give_the_mask_back(height: int, width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    size = (height, width)
    parts = rle.from_polygons(trace_polygons(mask), size) if mask.any() else [rle.encode(mask)]
    assert (rle.decode(rle.merge(parts, size), size) == mask).all()
    assert sum(rle.area(part, size) for part in parts) == mask.sum()
