"""The cards: complete, explained, and refused in one sentence where they are wrong."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from risbench import datasets
from risbench.datasets import Count
from risbench.errors import InputError

CARDS = Path(__file__).parents[2] / "datasets"
REFER = ["refcoco", "refcoco+", "refcocog", "refcocog-google", "grefcoco"]


def changed(small_card: Path, folder: Path, old: str, new: str) -> str:
    """Path of a copy of the small card with something changed."""
    text = small_card.read_text()
    assert old in text
    (folder / "own.toml").write_text(text.replace(old, new))
    return str(folder / "own.toml")


def test_the_refer_family_has_cards() -> None:
    assert set(REFER) <= set(datasets.names())


def test_datasets_hold_no_python() -> None:
    assert [path.name for path in CARDS.rglob("*") if path.suffix not in (".toml", ".md")] == []


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_card_has_the_name_of_its_file_and_says_where_it_comes_from(path: Path) -> None:
    card = datasets.load(path.stem)
    assert card.name == path.stem
    assert card == datasets.load(str(path))
    assert card.where and card.licence and card.citation
    assert card.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not card.splits["train"].evaluation
    assert all(split.evaluation for name, split in card.splits.items() if name != "train")


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_key_of_a_card_is_explained(path: Path) -> None:
    inside, previous, unexplained = False, "", []
    for line in path.read_text().splitlines():
        if not inside and " = " in line and not line.startswith("#") and not previous.startswith("#"):
            unexplained.append(line)
        inside ^= line.count('"""') % 2 == 1
        previous = line
    assert unexplained == []


def test_published_counts_name_their_source() -> None:
    refcoco = datasets.load("refcoco").splits
    assert [split.refs.n for split in refcoco.values() if split.refs] == [42404, 3811, 1975, 1810]
    assert [split.expressions.n for split in refcoco.values() if split.expressions] == [120624, 10834, 5657, 5095]
    for name in ("refcoco", "refcoco+", "refcocog"):
        counts = [count for split in datasets.load(name).splits.values() for count in split.counts().values()]
        assert all(count.source for count in counts)


def test_partitions_of_refcocog_differ_in_refs_and_splits() -> None:
    umd, google = datasets.load("refcocog"), datasets.load("refcocog-google")
    assert (umd.folder, umd.refs) == ("refcocog", "refs(umd).p")
    assert (google.folder, google.refs) == ("refcocog", "refs(google).p")
    assert list(google.splits) == ["train", "val"]
    assert google.splits["val"].expressions == Count(n=9536, source="")


def test_unknown_name_proposes_the_nearest_and_says_how_to_give_a_card() -> None:
    with pytest.raises(InputError, match=r"Unknown data set 'refcogo'. Did you mean 'refcoco.*'\? Known: .*\.toml"):
        datasets.load("refcogo")


def test_card_by_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml cannot be read: No such file"):
        datasets.load(str(tmp_path / "nowhere.toml"))


def test_card_that_is_not_toml_names_the_line(small_card: Path, tmp_path: Path) -> None:
    path = changed(small_card, tmp_path, 'title = "Twelve', 'title = Twelve"')
    with pytest.raises(InputError, match=r"own\.toml is not TOML: .*line 3"):
        datasets.load(path)


def test_bare_numbers_take_the_source_of_their_split(small_card: Path, tmp_path: Path) -> None:
    path = changed(small_card, tmp_path, "images = 1, refs = 2, expressions = 4", "images = 1, refs = { n = 2 }")
    val = datasets.load(path).splits["val"]
    assert val.counts() == {"images": Count(n=1, source="tests/conftest.py"), "refs": Count(n=2)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "', 'license = "', r"Unknown key in the card .*own\.toml: 'license'. Did you mean 'licence'\?"),
        ("refs = 2,", "reffs = 2,", r"Unknown key of \[splits\.val\] .*'reffs'. Did you mean 'refs'\?"),
        ("refs = 2,", "refs = { m = 2 },", r"Unknown key of \[splits\.val\.refs\] .*'m'.*Known: n, source"),
        ("max_words = 15", 'max_words = "15"', r"wrong value at max_words: Input should be a valid integer"),
        ("refs = 2,", "refs = -2,", r"wrong value at splits\.val\.refs\.n: Input should be greater than or equal to 0"),
        ('where = "tests', 'notes = "tests', r"wrong value at where: Field required"),
    ],
)
def test_wrong_card_is_refused_in_one_sentence(
    small_card: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        datasets.load(changed(small_card, tmp_path, old, new))


def test_card_without_splits_is_refused(small_card: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(small_card.read_text().split("[splits]")[0] + "[splits]\n")
    with pytest.raises(InputError, match="wrong value at splits"):
        datasets.load(str(tmp_path / "own.toml"))


def test_installed_package_finds_the_cards_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(CARDS / "refcoco.toml", tmp_path)
    monkeypatch.setattr(datasets, "_PACKAGE", tmp_path)
    monkeypatch.setattr(datasets, "_REPOSITORY", tmp_path / "site-packages")
    assert datasets.names() == ["refcoco"]
    assert datasets.load("refcoco").title == "RefCOCO"
