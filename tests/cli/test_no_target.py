"""A method of a user's that answers no-target itself, from training to the drawn answer."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from risbench.gate.scaffold import new_method
from risbench.scoring import predictions_file

RunCommand = Callable[..., tuple[int, str, str]]
VAL = ("left box", "both boxes", "all of them", "the dog")  # of the data set with sets, in the order of their ids
CODE = """

class Model(Model):
    def predict_from(self, features, words):
        prediction = super().predict_from(features, words)
        return prediction._replace(no_target=1 - prediction.probability.amax(dim=(1, 2)))
"""


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = new_method("answering", tmp_path)
    with (folder / "answering.py").open("a", encoding="utf-8") as file:
        file.write(textwrap.dedent(CODE))
    monkeypatch.setenv("RISBENCH_METHODS", "")
    return folder


def test_the_answer_of_a_method_is_stored_scored_and_drawn(
    run_command: RunCommand, answering: Path, sets_root: Path, short_training: list[str], tmp_path: Path
) -> None:
    where = ["--dataset", sets_root / "sets.toml", "--data-root", sets_root, "--split", "val", "--protocol", "gsva"]
    run = ["run", "--method", answering, *where, *short_training]
    code, out, err = run_command(*run, "predict.no_target_below=0.5")
    assert (code, out) == (2, "") and "answering answers itself whether there is a target" in err
    assert not list((tmp_path / "runs").glob("*/checkpoints/*"))  # refused before the first epoch

    code, out, err = run_command(*run, "--json", "--runs", "answered")
    assert code == 0, err
    [record] = json.loads(out)
    [folder] = (tmp_path / "answered").iterdir()
    file = folder / "predictions" / "val-gsva.parquet"
    stored = predictions_file.read(file)
    assert stored.no_target is not None and stored.largest_probability is not None
    assert stored.no_target.tolist() == (stored.largest_probability < 0.5).tolist()
    right = [said == (text == "the dog") for said, text in zip(stored.no_target, VAL, strict=True)]
    assert record["metrics"]["T-acc"] == pytest.approx(100 * sum(right[:3]) / 3)
    assert record["metrics"]["N-acc"] == 100 * right[3]

    code, out, err = run_command("no-target", file, *where[:4], "--protocol", "gsva")
    assert (code, out) == (2, "") and "nothing is to be chosen" in err
    Image.new("RGB", (40, 30), (200, 30, 30)).save("photo.png")
    checkpoint = folder / "checkpoints" / "best"
    code, out, err = run_command("segment", "photo.png", "left box", "--checkpoint", checkpoint, "--method", answering)
    assert code == 0 and re.search(r"% of the image, nothing here is meant: [01]\.\d\d\n", out), (out, err)
