"""The contract, over every folder in methods/, and what a method of this repository has to have besides."""

from __future__ import annotations

import ast
import sys
from contextlib import nullcontext

import pytest
import torch

from risbench import methods, recipe
from risbench.api import Batch, Method, Words
from risbench.errors import InputError
from risbench.gate import contract
from risbench.gate.contract import Demand
from risbench.gate.contract_case import Case
from risbench.runs.cost import count_flops

ALLOWED = {"torch", "timm", "transformers", "numpy", "risbench"}


@pytest.fixture(scope="module")
def case(method: str) -> Case:
    return Case(method)


@pytest.mark.parametrize("demand", contract.DEMANDS, ids=lambda demand: demand.check.__name__)
def test_a_method_meets_the_contract(case: Case, demand: Demand) -> None:
    if demand.of_training:
        _require_training(case)
    assert contract.find_problem(demand, case) == ""


def test_the_folder_is_complete(method: str) -> None:
    folder = methods.folder(method)
    assert (folder / f"{folder.name}.py").is_file()
    assert len((folder / "README.md").read_text(encoding="utf-8")) > 500
    assert "tiny" in recipe.variant_names(folder / "recipe.toml")


def test_every_key_of_the_recipe_is_explained(method: str) -> None:
    """A comment stands before each key, or before the group of keys it belongs to."""
    base = methods.recipe_file(method).read_text(encoding="utf-8").partition("[variant.")[0]
    explained = False
    for line in base.splitlines():
        if "=" in line and not line.startswith("#"):
            assert explained, line
        else:
            explained = line.startswith("#")


def test_every_variant_builds_from_scratch(case: Case) -> None:
    """Alone and of the small network; without memory, for it may be large."""
    path = methods.recipe_file(case.method)
    for name in recipe.variant_names(path):
        for variants in ([name], ["tiny", name]):
            assert _size(_build_without_memory(case, variants)) > 0


def test_the_full_size_network_is_ten_times_the_small_one(case: Case) -> None:
    assert _size(_build_without_memory(case, [])) > 10 * _size(case.build())


def test_a_method_imports_only_what_is_allowed(method: str) -> None:
    for file in methods.folder(method).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                root = name.partition(".")[0]
                assert root in ALLOWED | set(sys.stdlib_module_names), f"{file.name} imports {name}"
                assert not name.startswith("risbench.methods."), f"{file.name} imports another method"


def test_the_loss_is_logged_by_the_paper_s_terms(case: Case) -> None:
    _require_training(case)
    assert len(case.build().loss(case.batch)) > 1


def test_no_gradient_is_zero_and_reasons_are_sentences(case: Case) -> None:
    frozen = case.build().frozen
    assert all(len(reason) > 20 for reason in frozen.values())
    _require_training(case)
    for name, gradient in case.gradients().items():
        assert name.startswith(tuple(frozen)) or (gradient is not None and gradient.any()), name


def test_the_words_change_the_prediction(case: Case) -> None:
    other = case.batch._replace(words=case.tokenizer(case.expressions[::-1]))
    changed, logits = (case.predict(batch).probability.logit(eps=1e-6) for batch in (other, case.batch))
    assert not torch.allclose(changed, logits, atol=1e-4)


def test_a_refusal_to_explain_says_what_to_leave_out(case: Case) -> None:
    batch, model = case.one(0), case.evaluated
    for tokens in ([], [1]):
        try:
            model.explain(batch, tokens)
        except InputError as error:
            assert "--word" in str(error) or "--explain" in str(error)


def test_all_words_have_places(case: Case) -> None:
    """All places of all words of an expression are its tokens, less what stands around the sentence."""
    for expression, mask in zip(case.expressions, case.batch.words.mask, strict=True):
        positions: set[int] = set()
        for word in expression.split():
            try:
                positions |= set(case.tokenizer.places(expression, word))
            except InputError as error:
                assert "cut off" in str(error)
        assert len(positions) >= int(mask.sum()) - 2  # [CLS] and [SEP]


def test_a_shorter_tokenizer_gives_the_first_tokens(case: Case) -> None:
    """The last one may be the end of the sentence instead, as CLIP needs it."""
    ids, shorter = (tokenizer(case.expressions).ids for tokenizer in (case.tokenizer, case.tokenizer.limited(3)))
    assert torch.equal(shorter[:, :2], ids[:, :2])
    ends = ids.gather(1, (ids > 0).sum(dim=1, keepdim=True) - 1)[:, 0]
    assert torch.equal(shorter[:, 2], ids[:, 2]) or torch.equal(shorter[:, 2], ends)


def test_more_expressions_are_more_work(case: Case) -> None:
    model = case.evaluated
    assert count_flops(model, case.batch) > count_flops(model, case.one(0)) > 0


def test_a_step_and_a_prediction_never_wait_for_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device meta, where tensors have no values, all is computed that does not bring a value to the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
    model = case.build().to("meta")
    image, image_index, words, mask = case.batch
    assert mask is not None
    ids = Words(words.ids.to("meta"), words.mask.to("meta"))
    batch = Batch(image.to("meta"), image_index.to("meta"), ids, mask.to("meta"))
    if case.trains:
        torch.autograd.backward(model.loss(batch)["total"])
    assert len(model.eval().predict(batch).probability) == len(case.expressions)


def _require_training(case: Case) -> None:
    if not case.trains:
        pytest.skip("this method is evaluated with pretrained weights alone, and refuses to train")


def _build_without_memory(case: Case, variants: list[str]) -> Method:
    """Build the network of some variants with the small vocabulary."""
    overrides = ["text.max_tokens=15", "model.pretrained=false"]
    settings, _ = recipe.load(methods.recipe_file(case.method), variants, overrides)
    with torch.device("meta"):
        return case.cls.build(settings, case.tokenizer)


def _size(model: Method) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
