from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from risbench import methods, recipe
from risbench.data.text import WordTokenizer
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.errors import InputError

SETTINGS, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["text.max_tokens=5"])
FACTS = Facts(
    method="lts",
    variants=["tiny"],
    training_data=["mini"],
    seed=3,
    epoch=2,
    training_seconds=1.5,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = WordTokenizer.build(["left red cup"], 5)
    model = methods.load("lts").build(SETTINGS, tokenizer)
    checkpoint.save(tmp_path / "last", model, tokenizer, SETTINGS, FACTS, {"optimizer": {}, "position": {"epoch": 2}})
    return tmp_path / "last"


def test_a_checkpoint_needs_nothing_but_its_folder(saved: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(saved, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(saved)
    opened = Checkpoint(moved)
    model, tokenizer = opened.model()
    assert opened.recipe == SETTINGS
    assert opened.facts.model_copy(update={"sha256": "", "state": "", "files": {}}) == FACTS
    assert opened.state()["position"] == {"epoch": 2}
    assert tokenizer(["red"]).ids.tolist() == [[4, 0, 0, 0, 0]]
    assert model.pretrained == ()


def test_a_save_that_fails_leaves_the_old_checkpoint(saved: Path) -> None:
    class Broken(WordTokenizer):
        def save(self, folder: Path) -> None:
            raise OSError("disk full")

    before = (saved / "weights.safetensors").read_bytes()
    model, _ = Checkpoint(saved).model()
    torch.nn.init.zeros_(next(model.parameters()))
    with pytest.raises(InputError, match="last cannot be written: disk full"):
        checkpoint.save(saved, model, Broken([], 5), SETTINGS, FACTS)
    assert (saved / "weights.safetensors").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last"]


def test_another_weights_file_is_noticed(saved: Path) -> None:
    content = bytearray((saved / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="damaged or exchanged"):
        Checkpoint(saved)


@pytest.mark.parametrize("name", ["recipe.toml", "text/words.json"])
def test_a_changed_recipe_or_vocabulary_is_noticed(saved: Path, name: str) -> None:
    (saved / name).write_text((saved / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} is not the file .*damaged or exchanged"):
        Checkpoint(saved)


def test_a_checkpoint_from_before_the_hashes_of_its_other_files_opens(saved: Path) -> None:
    facts = json.loads((saved / "checkpoint.json").read_text(encoding="utf-8"))
    assert set(facts.pop("files")) == {"recipe.toml", "text/words.json"}
    (saved / "checkpoint.json").write_text(json.dumps(facts), encoding="utf-8")
    assert Checkpoint(saved).model()


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.toml", "checkpoint.json"])
def test_an_incomplete_checkpoint_names_the_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"no {name}"):
        Checkpoint(saved)


def test_no_state_means_no_resuming(saved: Path) -> None:
    (saved / "state.pt").unlink()
    with pytest.raises(InputError, match="no state.pt"):
        Checkpoint(saved).state()


def test_weights_of_another_shape_name_the_first_keys(saved: Path) -> None:
    tokenizer = WordTokenizer.build(["another vocabulary of five words"], 5)
    model = methods.load("lts").build(SETTINGS, tokenizer)
    with pytest.raises(InputError, match=r"1 of another shape or type, first network.text.vectors.weight"):
        checkpoint.load_weights(model, saved / "weights.safetensors")


def test_a_state_with_code_in_it_is_refused(saved: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save(Code(), saved / "state.pt")
    without_hash(saved)
    with pytest.raises(InputError, match="state.pt is no training state of this run .*--init"):
        Checkpoint(saved).state()


def without_hash(folder: Path) -> None:
    """Remove the hash of state.pt, which old checkpoints lack."""
    facts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    (folder / "checkpoint.json").write_text(json.dumps({**facts, "state": ""}), encoding="utf-8")


@pytest.mark.parametrize("change", ["bit", "zeros", "cut", "other"])
def test_a_changed_training_state_is_noticed(saved: Path, change: str) -> None:
    path = saved / "state.pt"
    content = bytearray(path.read_bytes())
    if change == "bit":
        content[len(content) // 2] ^= 1
    elif change == "zeros":
        content[100:200] = bytes(100)
    elif change == "cut":
        del content[-100:]
    path.write_bytes(content)
    if change == "other":
        torch.save({"optimizer": {}, "position": {"epoch": 1}}, path)
    with pytest.raises(
        InputError, match=r"state.pt is no training state of this run \(checkpoint.json describes another"
    ):
        Checkpoint(saved).state()


def test_a_state_without_a_hash_is_read_with_a_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    without_hash(saved)
    assert Checkpoint(saved).state()["position"] == {"epoch": 2}
    assert "state.pt has no hash in checkpoint.json" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x80\x02.", None, [], {"optimizer": {}}, {"optimizer": 3, "position": {}}]
)
def test_a_state_of_another_structure_is_one_sentence(saved: Path, content: object) -> None:
    path = saved / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    without_hash(saved)
    with pytest.raises(InputError, match="state.pt is no training state of this run"):
        Checkpoint(saved).state()


def test_unreadable_facts_are_one_sentence(saved: Path) -> None:
    facts = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**facts, "epoch": "many"}))
    with pytest.raises(InputError, match=r"checkpoint.json cannot be read \(epoch: "):
        Checkpoint(saved)


def test_a_newer_format_asks_for_a_newer_risbench(saved: Path) -> None:
    facts = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**facts, "format": 99, "more": 1}))
    with pytest.raises(InputError, match="has format 99, this risbench reads 1: use a newer risbench"):
        Checkpoint(saved)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]", b"3", b'{"format": null}'])
def test_broken_facts_are_one_sentence(saved: Path, content: bytes) -> None:
    (saved / "checkpoint.json").write_bytes(content)
    with pytest.raises(InputError, match="checkpoint.json"):
        Checkpoint(saved)


@pytest.mark.parametrize("folder", [".", ""])
def test_the_current_folder_may_be_a_checkpoint_or_none(
    saved: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(saved)
    assert Checkpoint(Path(folder)).facts.epoch == 2
    monkeypatch.chdir(saved.parent)
    with pytest.raises(InputError, match="is not a checkpoint: it holds no weights"):
        Checkpoint(Path(folder))
