"""How long intervals and a paired comparison take at the size of RefCOCO val: 11,000 expressions of 1,500 images.

Run on one core: OMP_NUM_THREADS=1 taskset -c 0 python -m pytest benchmarks/test_statistics.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pytest_benchmark.fixture import BenchmarkFixture

from risbench.analysis import compare
from risbench.analysis.run_rows import RunRows
from risbench.analysis.sides import Side
from risbench.scoring import metrics, protocol, statistics

IMAGES, EXPRESSIONS = 1500, 11_000
GOAL = 2.0  # seconds
ORIGINAL = protocol.load("original")


def rows(seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    true_area = np.random.default_rng(0).integers(500, 100_000, EXPRESSIONS)
    part = (true_area * generator.random(EXPRESSIONS)).astype(np.int64)
    ids = {"sent_id": np.arange(EXPRESSIONS), "image_id": np.arange(EXPRESSIONS) * IMAGES // EXPRESSIONS}
    counts = {"intersection": part, "union": true_area, "predicted_area": part, "true_area": true_area}
    edges = {"boundary_intersection": part // 8, "boundary_union": true_area // 4}
    return pd.DataFrame({**ids, **counts, **edges, "peak_hit": generator.integers(0, 2, EXPRESSIONS)})


def test_intervals_of_all_metrics(benchmark: BenchmarkFixture) -> None:
    intervals = benchmark(statistics.intervals, rows(1), ORIGINAL)
    assert set(intervals) == set(metrics.NAMES)
    assert benchmark.stats is None or benchmark.stats["median"] < GOAL  # None where only correctness is run


def test_intervals_of_twelve_parts(benchmark: BenchmarkFixture) -> None:
    table = rows(1)
    members = {part: (table["sent_id"] % 12 == part).to_numpy() for part in range(12)}
    ratio = statistics.ratio_terms(table, ORIGINAL)["oIoU"]
    assert len(benchmark(statistics.intervals_by_part, table, members, ratio)) == 12


def test_comparing_two_runs(benchmark: BenchmarkFixture) -> None:
    sides = [Side(name, (RunRows(Path(name), rows(seed), "", "", "original"),)) for seed, name in enumerate("AB", 1)]
    first, second = benchmark(compare.compare, sides)
    assert set(first) == set(second) == set(metrics.NAMES)
