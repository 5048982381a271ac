"""The cost of a method: parameters, FLOPs, memory and speed."""

from __future__ import annotations

import sys
from contextlib import suppress

import psutil
import torch
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from risbench.api import Batch, Method
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.engine.predict import Predictor, measure_speed


def measure_cost(
    predictor: Predictor, index: Index, split: Split, training_seconds: float | None
) -> dict[str, float | int | None]:
    """Measure what a prediction costs: FLOPs of one expression and its image, the peak memory of this process."""
    memory = peak_memory(predictor.fabric)  # before FLOPs are counted, which keeps gradients
    batch = predictor.fabric.to_device(predictor.samples(index, split)[[0]].batch)
    return {
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "flops": count_flops(predictor.model, batch),
        "training_seconds": training_seconds,
        "expressions_per_second": round(measure_speed(predictor, index, split), 2),
        "peak_memory_bytes": memory,
    }


def count_flops(model: Method, batch: Batch) -> int:
    """Count the floating-point operations of a prediction."""
    with FlopCounterMode(display=False) as counter:  # fails on views of weights when gradients are off
        model.predict(batch)
    return int(counter.get_total_flops())


def peak_memory(fabric: Fabric) -> int:
    """Return the peak memory in bytes: of the CUDA device, or else the resident memory of this process."""
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _peak_resident_memory()


def _peak_resident_memory() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows lacks it, and psutil knows no peak elsewhere

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def reset_peak_memory(fabric: Fabric) -> None:
    """Start a new measurement of the peak memory, so that the runs of one process are measured apart."""
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux only; elsewhere the peak stays
        file.write("5")
