"""The check of two runs: whether the second has fallen behind the first beyond chance and by more than a margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from risbench.analysis import compare
from risbench.analysis.compare_tables import flips_table
from risbench.analysis.run_rows import RunOptions
from risbench.analysis.sides import Side, expression_texts, open_sides
from risbench.errors import InputError, unknown
from risbench.gate.outcome import NUM_FLIPS, REGRESSION, CheckedNumber, Outcome
from risbench.scoring import metrics, statistics
from risbench.scoring import protocol as protocols


def check_runs(arguments: Sequence[str], options: RunOptions, metric: str = "", margin: float = 0.5) -> Outcome:
    """Open two runs, as `risbench compare` does, and check the second against the first."""
    if len(arguments) != 2:
        cure = "give the old one and the new one, or --baseline NAME.json"
        raise InputError(f"A check compares two runs, not {len(arguments)}: {cure}.")
    sides = open_sides(arguments, options)
    return check_sides(sides, metric, margin, expression_texts(sides[0].runs[0], options))


def check_sides(sides: Sequence[Side], metric: str, margin: float, texts: Mapping[int, str]) -> Outcome:
    """Check the second side against the first.

    `metric` is by default the headline of the protocol, `margin` is in percent points, `texts` are the expressions by
    their sent_id. Raises InputError when the metric is unknown, or has no interval of a difference.
    """
    protocol = protocols.load(sides[0].runs[0].protocol)
    metric = metric or protocol.score.headline
    if metric not in metrics.names(protocol.score):
        raise unknown("metric", metric, metrics.names(protocol.score))
    was, now = (result[metric] for result in compare.compare(sides))
    if now.difference_interval is None:
        raise InputError(
            f"{metric} has no interval of a difference here, which needs {statistics.MIN_IMAGES} images with a value:"
            " give another --metric, or predictions of more images."
        )
    verdict = _verdict(*now.difference_interval, margin)
    failed = verdict == REGRESSION
    check = f"B against A, {protocol.name}"
    number = CheckedNumber(check, metric, was.value, now.value, now.difference_interval, verdict, failed)
    flips = (flips_table(sides, NUM_FLIPS, texts),) if failed else ()
    return Outcome((number,), flips, _notes(sides, margin))


def _verdict(low: float, high: float, margin: float) -> str:
    """Judge a change by its 95 % interval."""
    if high < 0 and low < -margin:
        return REGRESSION
    if low > margin:
        return "better"
    if low < -margin:
        return "open"
    return "equivalent" if high <= margin else "not worse"


def _notes(sides: Sequence[Side], margin: float) -> tuple[str, ...]:
    single = " and ".join(side.name for side in sides if len(side.runs) == 1)
    one_seed = f"{single}: one seed, so chance is that of the images; another seed may come out otherwise."
    return (
        *(side.description() for side in sides),
        *([one_seed] if single else []),
        f"By the 95 % interval of the change and a margin of {margin:g} points. {REGRESSION}: it lies below 0 and"
        " reaches beyond the margin; equivalent: it lies within the margin either way; better, not worse: above the"
        " margin, above the margin downwards; open: none of these, so neither a fall is shown nor that there is none.",
    )
