"""Losses stay on the device: when they are read, what is logged of them, and how one that is not finite is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from risbench import methods, recipe
from risbench.data.index import Index
from risbench.data.loader import TrainingSamples
from risbench.data.micro_batches import MicroBatch
from risbench.data.text import WordTokenizer
from risbench.engine import losses
from risbench.engine.losses import Losses
from risbench.errors import InputError

SETTINGS, _ = recipe.load(methods.recipe_file("lts"), ["tiny"])


@pytest.fixture
def samples(small_index: Index) -> TrainingSamples:
    split = small_index.split("train")
    return TrainingSamples(
        sources=[(small_index, split)] * 2,  # two data sets of one name
        rows=[(source, row) for source in (0, 1) for row in range(len(split))],
        field="sent",
        tokenizer=WordTokenizer.build(split.sent, 6),
        image=SETTINGS.image,
    )


def kept(samples: TrainingSamples, steps: int, precision: str = "32-true") -> Losses:
    fabric: Any = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    train = SETTINGS.train.model_copy(update={"precision": precision})
    return Losses(fabric, samples, train, epoch=3, steps=steps)


def terms(total: float, **more: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in {"total": total, **more}.items()}


def whole(*positions: int) -> list[MicroBatch]:
    return [MicroBatch(list(positions), 1.0)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the calls that wait for the device."""
    calls: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        original = getattr(Tensor, name)

        def call(tensor: Tensor, *arguments: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(Tensor, name, call)
    return calls


def test_terms_are_read_every_few_steps_and_after_the_last_one(samples: TrainingSamples, reads: list[str]) -> None:
    added = kept(samples, steps=2 * losses.READ_EVERY + 1)
    counts = []
    for step in range(1, 2 * losses.READ_EVERY + 2):
        added.add(step, whole(0, 1), [terms(1.0, L_seg=0.5)])
        counts.append(len(reads))
    assert counts == [0] * (losses.READ_EVERY - 1) + [1] * losses.READ_EVERY + [2, 3]


def test_the_mean_weights_each_micro_batch_by_its_expressions(samples: TrainingSamples) -> None:
    added = kept(samples, steps=2)
    pieces = [MicroBatch([0, 1, 2], 0.75), MicroBatch([3], 0.25), MicroBatch([0], 0.0)]
    added.add(1, pieces, [terms(4.0), terms(8.0), terms(100.0)])
    added.add(2, whole(4, 5, 6, 7), [terms(1.0, L_loc=3.0)])
    assert added.means() == {"total": 3.0, "L_loc": 1.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [1, 4, 60])
def test_the_first_step_that_is_not_finite_is_named_with_its_expressions(
    samples: TrainingSamples, step: int, value: float
) -> None:
    """Whatever the steps after it are: with such weights they are no numbers either."""
    added, split = kept(samples, steps=60), samples.sources[0][1]
    positions = {number: (number % 7, number % 7 + 1) for number in range(1, 61)}
    with pytest.raises(InputError) as raised:
        for number in range(1, 61):
            bad = value if number == step else float("nan") if number > step else 1.0
            pieces = [*whole(9), *whole(*positions[number])]
            added.add(number, pieces, [terms(1.0, L_seg=1.0), terms(2.0, L_seg=bad)])
    first, second = (split.sent_id[position] for position in positions[step])
    assert str(raised.value) == (
        f"The loss is no longer finite in epoch 3, step {step} of 60 (total 2, L_seg {value}), with the expressions "
        f"sent_id {first}, {second} of small. Lower train.lr."
    )


def test_a_repeated_expression_is_named_once_and_long_batches_are_cut(samples: TrainingSamples) -> None:
    sent_id = samples.sources[0][1].sent_id
    assert losses._named(samples, [0, 0, 1]) == f"sent_id {sent_id[0]}, {sent_id[1]} of small"
    assert losses._named(samples, [0] * 65) == f"sent_id {sent_id[0]} of small and others"


def test_every_data_set_of_a_batch_is_named(samples: TrainingSamples) -> None:
    index, split = samples.sources[0]
    other = cast(Index, SimpleNamespace(card=SimpleNamespace(name="other")))
    both = TrainingSamples(**{**vars(samples), "sources": [(index, split), (other, split)]})
    names = losses._named(both, [1, len(split)])
    assert names == f"sent_id {split.sent_id[1]} of small and sent_id {split.sent_id[0]} of other"


def test_full_precision_is_proposed_where_it_is_not_there(samples: TrainingSamples) -> None:
    for precision, words in (("32-true", r"Lower train.lr\.$"), ("16-mixed", r"train.precision=32-true\)\.$")):
        with pytest.raises(InputError, match=words):
            kept(samples, 1, precision).add(1, whole(0), [terms(float("nan"))])


def test_an_error_that_follows_from_such_a_loss_gives_way_to_it(samples: TrainingSamples) -> None:
    """Some functions refuse numbers that are none, before the next reading."""
    for value, error in ((float("nan"), InputError), (1.0, RuntimeError)):
        added = kept(samples, 60)
        added.add(1, whole(0), [terms(value)])
        with pytest.raises(error), added.first_cause():
            raise RuntimeError("all elements of input should be between 0 and 1")
