"""The cards: complete, explained, and refused in one sentence where they are wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench import datasets
from risbench.datasets import Count
from risbench.errors import InputError

RunCommand = Callable[..., tuple[int, str, str]]
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


def test_unknown_name_lists_the_known_and_says_how_to_give_a_card() -> None:
    with pytest.raises(InputError, match=r"Unknown data set 'refcogo'. Known: .*refcocog.*\.toml.*RISBENCH_DATASETS"):
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
        ("max_words = 15", "max_words = 513", r"wrong value at max_words: Input should be less than or equal to 512"),
        ("refs = 2,", f"refs = {2**53},", r"wrong value at splits\.val\.refs\.n: Input should be less than"),
        ("refs = 2,", f"refs = {'9' * 5000},", r"is not TOML: .*4300 digits"),
        ("max_words = 15", f"max_words = {'[' * 100_000}", r"is not TOML: it is nested too deeply"),
        ('title = "', r'title = "\ud800', r"is not TOML: .*scalar"),
        ('title = "', r'title = "\u001b[2J', r"wrong value at title: it holds the control character '\\x1b'"),
        ('where = "', r'where = "\u0000', r"wrong value at where: it holds the control character '\\x00'"),
        (
            'name = "small"',
            'name = "../small"',
            r"wrong value at name: '\.\./small' is no name: take at most 64 letters",
        ),
        ('name = "small"', 'name = ""', r"wrong value at name: '' is no name"),
        ('name = "small"', 'name = "small.toml"', r"wrong value at name: 'small\.toml' is no name"),
        ("val = {", '"a/b" = {', r"wrong value at splits\.a/b: 'a/b' is no name"),
        ("val = {", '"a,b" = {', r"wrong value at splits\.a,b: 'a,b' is no name"),
        ('folder = "', 'folder = "/', r"wrong value at folder: '/small' leads out of the data root.*--images"),
        ('folder = "', 'folder = "C:/', r"wrong value at folder: 'C:/small' leads out of the data root"),
        ('refs = "', 'refs = "../', r"wrong value at refs: '\.\./refs\(unc\)\.p' leads out of the data root"),
        ('instances = "', 'instances = "a/../../', r"wrong value at instances: .* leads out of the data root"),
        ('images = "images', r'images = "..\\images', r"wrong value at images: .* leads out of the data root"),
        ('refs = "', 'refs = "' + "a" * 300, r"wrong value at refs: 'aaa.*'\.\.\. is longer than a path can be"),
        (
            'licence = "',
            'file_sha256 = "0"\nlicense = "',
            r"'license'. Did you mean 'licence'.* splits, sha256, kinds, notes\.",
        ),
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


# cards of the user's


@pytest.fixture
def cards(small_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of cards that RISBENCH_DATASETS names; it holds small.toml."""
    folder = tmp_path / "cards"
    folder.mkdir()
    shutil.copy(small_card, folder)
    monkeypatch.setenv("RISBENCH_DATASETS", os.pathsep.join([str(folder), "", str(tmp_path / "nowhere")]))
    return folder


def test_a_card_in_a_named_folder_is_known_by_its_name(cards: Path) -> None:
    assert datasets.names() == sorted([*REFER, "mini", "mini-gres", "small"])
    assert datasets.load("small") == datasets.load(str(cards / "small.toml"))
    assert datasets.load("refcoco").title == "RefCOCO"


def test_every_list_shows_the_cards_of_the_user(cards: Path, run_command: RunCommand) -> None:
    assert "data set   small  (Twelve refs in six drawn images)" in run_command("list")[1]
    assert "small: Twelve refs in six drawn images" in run_command("data", "list")[1]


def test_commands_take_the_name_of_a_card_of_the_user(
    cards: Path, small_root: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    arguments = ("--method", "reference/whole-image", "--dataset", "small", "--split", "val")
    assert run_command("run", *arguments, "--data-root", small_root)[0] == 0
    assert "small val" in run_command("table", "--dataset", "small")[1]
    assert "--dataset small" in run_command("plan", "lts-2", "--dataset", "small")[1]


def test_a_second_card_of_a_built_in_name_is_refused(cards: Path) -> None:
    shutil.copy(cards / "small.toml", cards / "refcoco.toml")
    with pytest.raises(
        InputError, match=r"holds the card .*cards.refcoco\.toml, but refcoco is the data set of .*another"
    ):
        datasets.load("refcoco+")
    with pytest.raises(InputError, match="holds the card"):
        datasets.names()


def test_two_cards_of_one_name_in_two_folders_are_refused(
    cards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cards, tmp_path / "others")
    monkeypatch.setenv("RISBENCH_DATASETS", os.pathsep.join([str(cards), str(tmp_path / "others"), str(cards)]))
    with pytest.raises(InputError, match=r"holds the card .*others.small\.toml, but small is the data set of .*cards"):
        datasets.names()
    monkeypatch.setenv("RISBENCH_DATASETS", os.pathsep.join([str(cards), str(CARDS), str(cards)]))
    assert "small" in datasets.names()


def test_the_file_of_a_card_has_its_name(cards: Path) -> None:
    (cards / "small.toml").rename(cards / "other.toml")
    with pytest.raises(InputError, match=r"card .*other\.toml is of the data set 'small': give the file the same name"):
        datasets.load("other")


def test_a_card_given_by_its_path_does_not_pass_for_another(tmp_path: Path) -> None:
    text = (CARDS / "refcoco.toml").read_text()
    (tmp_path / "copy.toml").write_text(text)
    assert datasets.load(str(tmp_path / "copy.toml")).name == "refcoco"
    (tmp_path / "copy.toml").write_text(text.replace("max_words = 15", "max_words = 16"))
    with pytest.raises(InputError, match=r"copy\.toml and .*refcoco\.toml differ and are both named 'refcoco': rename"):
        datasets.load(str(tmp_path / "copy.toml"))


def test_a_named_folder_that_does_not_exist_is_said(cards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"RISBENCH_DATASETS names {tmp_path / 'nowhere'}, which is no folder"):
        datasets.load("smaller")


def test_a_pipe_in_place_of_a_card_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.toml")
    with pytest.raises(InputError, match=r"own\.toml is a device or a pipe"):
        datasets.load(str(tmp_path / "own.toml"))


def test_a_table_takes_a_card(small_card: Path, small_root: Path, run_command: RunCommand) -> None:
    assert "No record is of small" in run_command("table", "--dataset", small_card)[2]
    arguments = ("--method", "reference/whole-image", "--dataset", small_card, "--split", "val")
    assert run_command("run", *arguments, "--data-root", small_root)[0] == 0
    assert "small val" in run_command("table", "--dataset", small_card)[1]
    assert "set RISBENCH_DATASETS=" in run_command("plan", "lts-2", "--dataset", small_card)[2]
