"""Every demand of the contract finds a method that breaks it, and the template and the example of api.py meet all."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench import api
from risbench.gate import contract
from risbench.gate.contract import Demand
from risbench.gate.contract_case import Case
from risbench.gate.scaffold import new_method

DOCS = Path(__file__).parents[2] / "docs" / "add-a-method.md"
RunCommand = Callable[..., tuple[int, str, str]]

# the check's name: what is appended to the code of the template, and a part of what the check says
BROKEN: dict[str, tuple[str, str]] = {
    "_code": (
        "class Model(Method):\n    pass",
        "Model does not define build, encode_image, loss, predict_from, tokenizer",
    ),
    "_tokenizer": (
        """
        class Pieces(WordTokenizer):
            def __call__(self, expressions):
                words = super().__call__(expressions)
                return Words(words.ids, words.ids > 1)

        class Model(Model):
            @classmethod
            def tokenizer(cls, recipe, expressions):
                return Pieces.build(expressions, recipe.text.max_tokens)
        """,
        "the row of the expression '' has no word",
    ),
    "_pickles": (
        """
        class Model(Model):
            @classmethod
            def tokenizer(cls, recipe, expressions):
                words = WordTokenizer.build(expressions, recipe.text.max_tokens)
                words.library = lambda: 3
                return words
        """,
        "pickle",
    ),
    "_limited": (
        """
        class Model(Model):
            @classmethod
            def tokenizer(cls, recipe, expressions):
                words = WordTokenizer.build(expressions, recipe.text.max_tokens)
                words.limited = lambda max_tokens: words
                return words
        """,
        r"limited\(3\) has max_tokens 8 and gives ids \(6, 8\)",
    ),
    "_places": (
        """
        class Model(Model):
            @classmethod
            def tokenizer(cls, recipe, expressions):
                words = WordTokenizer.build(expressions, recipe.text.max_tokens)
                words.places = lambda expression, word: [7]
                return words
        """,
        r"'the' of 'the red box' is at \[7\], where the mask has no word",
    ),
    "_build": (
        """
        class Model(Model):
            @classmethod
            def build(cls, recipe, tokenizer):
                model = super().build(recipe, tokenizer)
                model.register_buffer("causal", torch.tensor(float("-inf")))
                return model
        """,
        "1 of .* weights hold NaN or infinite numbers, first causal",
    ),
    "_load_pretrained": (
        """
        class Model(Model):
            def load_pretrained(self, recipe, tokenizer):
                self.weights = "CLIP"
        """,
        "load_pretrained of Model returns NoneType, no list of risbench.api.Pretrained",
    ),
    "_loss": (
        """
        class Model(Model):
            def loss(self, batch):
                return {"L_mask": super().loss(batch)["total"]}
        """,
        "the terms are L_mask",
    ),
    "_no_target": (
        """
        class Model(Model):
            def loss(self, batch):
                share = batch.mask.sum() / batch.mask.sum(dim=(1, 2)).min()
                return {"total": super().loss(batch)["total"] * share}
        """,
        r"without a target in one expression, not finite: no finite scalar: total \(\)",
    ),
    "_gradients": (
        """
        class Model(Model):
            def __init__(self, network):
                super().__init__(network)
                self.idle = nn.Linear(2, 2)
        """,
        "no gradient: idle.weight, idle.bias",
    ),
    "_groups": (
        """
        class Model(Model):
            def parameter_groups(self):
                return [{"params": list(self.network.decoder.parameters())}]
        """,
        "in no group: network.image.stem.0.weight, ",
    ),
    "_seed": (
        """
        class Model(Model):
            def loss(self, batch):
                import os
                return {"total": super().loss(batch)["total"] * (1 + os.urandom(1)[0])}
        """,
        "different: network.image.stem.0.weight",
    ),
    "_prediction": (
        """
        class Model(Model):
            def predict_from(self, features, words):
                return Prediction(self.network(features[0], words))
        """,
        "which are no probabilities",
    ),
    "_alone": (
        """
        class Model(Model):
            def predict_from(self, features, words):
                logits = self.network(features[0], words)
                return Prediction((logits - logits.mean(dim=0)).sigmoid())
        """,
        "'the red box' differs by",
    ),
    "_padding": (
        """
        class Model(Model):
            def predict_from(self, features, words):
                return super().predict_from(features, Words(words.ids, torch.ones_like(words.mask)))
        """,
        "predictions differ by",
    ),
    "_encode_image": (
        """
        class Model(Model):
            def encode_image(self, batch):
                return (self.network.image(batch.image) + batch.words.ids.float().mul(torch.arange(6)[:, None]).mean(),)
        """,
        "other words give other features",
    ),
    "_operations": (
        """
        class Model(Model):
            def predict_from(self, features, words):
                return Prediction(torch.as_tensor(self.network(features[0], words).sigmoid().numpy()))
        """,
        "RuntimeError: Can't call numpy.* .broken.py, line ",
    ),
    "_checkpoint": (
        """
        class Model(Model):
            seen = 0

            def loss(self, batch):
                self.seen = 1
                return super().loss(batch)

            def predict_from(self, features, words):
                return Prediction((self.network(features[0], words) + self.seen).sigmoid())
        """,
        "the probabilities differ",
    ),
    "_explain": (
        """
        class Model(Model):
            def explain(self, batch, tokens):
                from risbench.api import Panel
                return [Panel("attention", torch.full((4, 4), 2.0))]
        """,
        r"the map 'attention' is \(4, 4\), with values from 2.0 to 2.0",
    ),
}


def write_broken(tmp_path: Path, code: str) -> Path:
    folder = new_method("broken", tmp_path)
    with (folder / "broken.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + textwrap.dedent(code) + "\n")
    return folder


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the methods of one test be unknown to the next one."""
    monkeypatch.setenv("RISBENCH_METHODS", "")
    for name in [name for name in sys.modules if re.match(r"risbench\.methods\.(broken|example|mine)\b", name)]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("name", BROKEN)
def test_each_demand_finds_a_method_that_breaks_it(tmp_path: Path, name: str) -> None:
    code, says = BROKEN[name]
    [broken] = [demand for demand in contract.DEMANDS if demand.check.__name__ == name]
    problem = contract.find_problem(broken, Case(str(write_broken(tmp_path, code))))
    assert re.search(says, problem), problem
    assert "\n" not in problem


def test_a_demand_on_the_recipe_finds_a_variant_that_does_not_resolve(tmp_path: Path) -> None:
    folder = write_broken(tmp_path, "")
    with (folder / "recipe.toml").open("a") as file:
        file.write("\n[variant.large.model]\nwidth = 3\n")
    verdicts = list(contract.examine(str(folder)))
    assert "Unknown recipe key 'model.width'" in verdicts[0].problem
    assert [verdict.state for verdict in verdicts] == ["failed", *["not examined"] * (len(verdicts) - 1)]


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("_prediction", "words.mask", r"it gives no-target answers \(6, 8\) of torch.bool for 6 expressions"),
        ("_prediction", "features[0].mean(dim=(1, 2, 3)) + 7", "as the probability that 'the red box' has no target"),
        ("_alone", "(words.ids.sum(dim=1) / words.ids.sum()).float()", "'the red box' differs by"),
        ("_alone", "None if len(words.ids) == 1 else torch.zeros(len(words.ids))", "'the red box' differs by inf"),
        ("_padding", "torch.full((len(words.ids),), 1 / words.ids.shape[1])", "predictions differ by 0.034"),
        ("_encode_image", "torch.rand(len(words.ids))", "predict gives another probability than the two in a row"),
        ("_checkpoint", "torch.full((len(words.ids),), float(self.seen))", "the probabilities differ"),
    ],
)
def test_a_no_target_answer_meets_the_demands_of_a_mask(tmp_path: Path, name: str, answer: str, says: str) -> None:
    code = f"""
        class Model(Model):
            seen = 0

            def loss(self, batch):
                self.seen = 1
                return super().loss(batch)

            def predict_from(self, features, words):
                return super().predict_from(features, words)._replace(no_target={answer})
        """
    [broken] = [demand for demand in contract.DEMANDS if demand.check.__name__ == name]
    problem = contract.find_problem(broken, Case(str(write_broken(tmp_path, code))))
    assert re.search(says, problem), problem


def test_a_method_that_answers_no_target_meets_the_contract(tmp_path: Path) -> None:
    code = """
        class Model(Model):
            def predict_from(self, features, words):
                prediction = super().predict_from(features, words)
                return prediction._replace(no_target=1 - prediction.probability.amax(dim=(1, 2)))
        """
    assert [verdict.problem for verdict in contract.examine(str(write_broken(tmp_path, code))) if verdict.problem] == []


@pytest.mark.parametrize(("refuses", "of_training"), [(True, "not examined"), (False, "ok")])
def test_a_zero_shot_method_may_refuse_to_train(tmp_path: Path, refuses: bool, of_training: str) -> None:
    code = """
        class Model(Model):
            def loss(self, batch):
                raise InputError("It is evaluated as it is: give train.epochs=0.")
    """
    folder = write_broken(tmp_path, f"from risbench.errors import InputError\n{textwrap.dedent(code)}" * refuses)
    file = folder / "recipe.toml"
    text = re.sub("(?m)^epochs = .*", "epochs = 0", file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8")
    states = {verdict.demand.text: verdict.state for verdict in contract.examine(str(folder))}
    assert {states[demand.text] for demand in contract.DEMANDS if demand.of_training} == {of_training}
    assert {states[demand.text] for demand in contract.DEMANDS if not demand.of_training} == {"ok"}


def test_every_demand_has_a_method_that_breaks_it() -> None:
    assert {demand.check.__name__ for demand in contract.DEMANDS} == {"_recipe", *BROKEN}


@pytest.mark.parametrize("demand", contract.DEMANDS, ids=lambda demand: demand.check.__name__)
def test_every_demand_is_written_in_the_documentation(demand: Demand) -> None:
    assert demand.text in " ".join(DOCS.read_text(encoding="utf-8").split())


def test_a_method_that_lacks_a_variant_tiny_terms_and_a_readme_meets_the_contract(tmp_path: Path) -> None:
    """What this repository asks of its own methods is no part of the contract."""
    folder = new_method("mine", tmp_path)
    (folder / "README.md").unlink()
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    small = text.partition("[variant.")[0].replace("size = 320", "size = 64").replace("channels = 128", "channels = 8")
    (folder / "recipe.toml").write_text(small, encoding="utf-8")
    assert {verdict.state for verdict in contract.examine(str(folder))} == {"ok"}


def test_the_example_of_the_contract_meets_it_and_trains(
    run_command: RunCommand, tmp_path: Path, small_root: Path, small_card: Path, short_training: list[str]
) -> None:
    """The example of api.py, which ignores the words, with the recipe of the template."""
    assert api.__doc__ is not None
    code = textwrap.dedent(api.__doc__.partition("which ignores the words:\n")[2].partition("\nLetters:")[0])
    folder = new_method("example", tmp_path)
    (folder / "example.py").write_text(code, encoding="utf-8")
    assert [verdict.problem for verdict in contract.examine(str(folder)) if verdict.state != "ok"] == []
    options = ["--dataset", small_card, "--data-root", small_root, "--split", "val", "--runs", "runs"]
    code_, out, err = run_command("run", "--method", folder, *options, *short_training)
    assert code_ == 0, err
    assert "example" in out


def test_what_the_command_writes_meets_the_contract_and_says_so(run_command: RunCommand) -> None:
    code, out, err = run_command("method", "new", "mine", "--folder", "methods")
    assert (code, err) == (0, "")
    assert "risbench run --method ./methods/mine --dataset mini" in out
    code, out, err = run_command("method", "check", "./methods/mine")
    assert (code, err) == (0, ""), out
    assert out.endswith("./methods/mine: every demand is met\n")
    assert out.count("\nok ") == len(contract.DEMANDS) - 1


def test_a_demand_that_fails_is_named_with_its_cure_and_exit_code_1(run_command: RunCommand, tmp_path: Path) -> None:
    folder = write_broken(tmp_path, BROKEN["_padding"][0])
    code, out, err = run_command("method", "check", folder)
    assert (code, err) == (1, "")
    failed = [line.strip() for line in out.partition("\nfailed")[2].splitlines()[:3]]
    assert failed[0] == "More padding behind the words changes no prediction."
    assert failed[1].startswith("predictions differ by ") and failed[2].startswith("Read words.mask")
    assert out.endswith(f"{folder}: 1 of {len(contract.DEMANDS)} demands failed\n")
    code, out, err = run_command("method", "check", folder, "--json")
    rows = json.loads(out)
    assert (code, err) == (1, "") and len(rows) == len(contract.DEMANDS)
    assert [row["demand"] for row in rows if row["state"] != "ok"] == [failed[0]]


def test_code_that_does_not_run_is_named_with_its_line(tmp_path: Path) -> None:
    verdicts = list(contract.examine(str(write_broken(tmp_path, "import no_such_library"))))
    assert verdicts[1].problem.startswith("ModuleNotFoundError: No module named 'no_such_library' (broken.py, line ")
    assert [verdict.state for verdict in verdicts[:3]] == ["ok", "failed", "not examined"]


def test_an_unknown_method_is_one_sentence(run_command: RunCommand) -> None:
    code, out, err = run_command("method", "check", "nothing")
    assert (code, out) == (2, "") and err.startswith("error: Unknown method 'nothing'") and err.count("\n") == 1
