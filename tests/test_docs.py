"""README, documentation and the other pages: command lines parse, Python examples run, links and paths exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.core import TyperGroup

from risbench import datasets
from risbench.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "methods/*/README.md", "results/*.md", "benchmarks/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
SHELLS = ("", "bash", "console", "sh", "shell")  # languages of blocks that may hold command lines
LAUNCHERS = ("nohup", "srun", "taskset", "time", "timeout", "xargs")

FENCED = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n|\n(?= {4}))+")
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
PATH = re.compile(
    r"(?<![\w./~<-])((?:risbench|methods|datasets|tests|benchmarks|examples|tools|docs)/[\w./+*-]*[\w*])(?![\w<])"
)
HEADING = re.compile(r"^#+ +(.*?)(?:\{ *#([\w-]+) *\})?$", re.MULTILINE)
INCLUDE = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)

UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])  # any error in options; typer does not export it


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the file name in its title, and its text."""

    language: str
    title: str
    text: str


def split(page: str) -> tuple[list[Block], str]:
    """Return the blocks of code of a page, fenced and indented, and the prose without them."""
    blocks = [
        Block(language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, title, text in FENCED.findall(page)
    ]
    prose = FENCED.sub("", page)
    blocks += [Block("", "", text) for text in INDENTED.findall(prose)]
    return blocks, INDENTED.sub("", prose)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of risbench in lines of a shell."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if "risbench" not in line.partition("#")[0]:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";<>|&")  # it leaves comments out
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&"):
                yield from arguments(words)
                words = []
            else:
                words.append(word)


def arguments(words: list[str]) -> Iterator[list[str]]:
    """Yield what a command passes to risbench, called by name, by `python -m`, or behind a launcher."""
    while words and (words[0] == "$" or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    redirections = [place for place, word in enumerate(words) if set(word) <= set("<>&")]
    words = words[: redirections[0]] if redirections else words
    for place, word in enumerate(words):
        called = place == 0 or words[place - 1] == "-m" or words[0] in LAUNCHERS
        if called and Path(word).name == "risbench":
            yield words[place + 1 :]
            return


def parse(words: list[str], complete: bool = True) -> None:
    """Parse arguments as the command line does, without running anything; raise ValueError for wrong ones."""
    command: Any = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        if len(words) == 1 and any(words[0] in option.opts for option in command.get_params(typer.Context(command))):
            return  # --help, --version and the like, which would run at once
        if not words or words[0] not in command.commands:
            raise ValueError(f"{shlex.join(words)!r} names no command of {sorted(command.commands)}")
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context("risbench", list(words))
    except typer.Exit:  # --help
        return
    except UsageError as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise ValueError(f"risbench {command.name} {shlex.join(words)}: {error}") from None


def label(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_command_line_parses(page: Path) -> None:
    blocks, prose = split(page.read_text(encoding="utf-8"))
    for block in blocks:
        for words in commands(block.text) if block.language in SHELLS else ():
            parse(words)
    for code in INLINE.findall(prose):
        for words in commands(code.replace("\n", " ")) if "risbench " in code else ():
            parse(words, complete=False)  # prose may name a command with some of its options


def test_the_documentation_has_command_lines() -> None:
    assert {"README.md", "docs/quickstart.md", "methods/lts/README.md"} <= {label(page) for page in PAGES}
    blocks, _ = split((DOCS / "quickstart.md").read_text(encoding="utf-8"))
    assert sum(len(list(commands(block.text))) for block in blocks if block.language in SHELLS) > 10


def test_command_lines_are_found_in_lines_of_a_shell() -> None:
    text = (
        "$ risbench list\nA=1 time risbench score m.jsonl --split val,testA | tail  # risbench isn't here\n"
        "pip install .\ntorchrun --nproc-per-node 4 -m risbench run \\\n    --method lts > log; risbench plan 'lts-2'\n"
    )
    expected = ["list", "score m.jsonl --split val,testA", "run --method lts", "plan lts-2"]
    assert [" ".join(words) for words in commands(text)] == expected


@pytest.mark.parametrize(
    "wrong",
    ["run --methud lts", "lst", "data leek", "data", "--versoin", "score m.jsonl --split", "compare a --flips x"],
)
def test_a_wrong_command_line_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        parse(wrong.split(), complete=False)


def test_missing_arguments_are_refused_in_blocks_and_allowed_in_prose() -> None:
    with pytest.raises(ValueError, match="split"):
        parse(["score", "m.jsonl"])
    parse(["score", "--json"], complete=False)


def test_blocks_are_taken_out_of_a_page() -> None:
    page = 'a\n\n    risbench x\n\n```python title="t.py"\n1\n```\n\n* c\n\n    ```bash\n    d\n    ```\n\nb\n'
    blocks, prose = split(page)
    assert [(block.language, block.title, block.text.strip()) for block in blocks] == [
        ("python", "t.py", "1"),
        ("bash", "", "d"),
        ("", "", "risbench x"),
    ]
    assert prose.split() == ["a", "*", "c", "b"]


def whole_image(image: Path, expression: str) -> NDArray[np.bool_]:
    """Stand in for the model of a reader."""
    with Image.open(image) as picture:
        return np.ones((picture.height, picture.width), dtype=np.bool_)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=label)
def test_every_python_example_runs(
    page: Path, small_root: Path, small_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets that are named are the small one, by its largest split; a block with a title is a file."""
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda name: load(name if name.endswith(".toml") else str(small_card)))
    monkeypatch.setenv("RISBENCH_DATA", str(small_root))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__", "model": whole_image}
    for number, block in enumerate(split(page.read_text(encoding="utf-8"))[0], start=1):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            code = re.sub(r'("[\w+-]+"), "(val|testA|testB|test)"', r'\1, "train"', block.text)
            exec(compile(code, f"{label(page)}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_link_and_path_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in ("".join(parts) for parts in LINK.findall(split(text)[1])):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if re.match(r"[a-z]+:", target):  # on the network
            continue
        assert path.exists(), target
        if anchor and not anchor.startswith("risbench."):  # those are made by mkdocstrings, and checked by mkdocs
            assert anchor in anchors(path.read_text(encoding="utf-8")), target
    for name in PATH.findall(LINK.sub("", text)):
        assert "NAME" in name or any(ROOT.glob(name)), name


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, with those of the files that it includes."""
    page = INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), page)
    headings = HEADING.findall(FENCED.sub("", page))
    return {name or re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text, name in headings}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r"([\w/-]+\.md)$", navigation, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
