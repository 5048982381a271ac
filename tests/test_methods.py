"""The contract, over every folder in methods/; `pytest tests/test_methods.py --method PATH` runs it over your own."""

from __future__ import annotations

import ast
import copy
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Method, Tokenizer, Words, repeat_for_expressions
from risbench.data.index import Index
from risbench.data.loader import TrainingSamples
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.errors import InputError
from risbench.recipe import Recipe
from risbench.runs.cost import count_flops

ALLOWED = {"torch", "timm", "transformers", "numpy", "risbench"}


@dataclass
class Case:
    """A method with its small network and a batch of six expressions of three images."""

    name: str
    recipe: Recipe
    model: Method
    tokenizer: Tokenizer
    batch: Batch
    expressions: list[str]


@pytest.fixture(scope="module")
def case(method: str, small_index: Index) -> Case:
    settings, _ = recipe.load(methods.recipe_file(method), ["tiny"], ["text.max_tokens=8", "model.pretrained=false"])
    split = small_index.split("train")
    expressions = split.texts(settings.text.field)
    torch.manual_seed(0)
    cls = methods.load(method)
    tokenizer = cls.tokenizer(settings, expressions)
    samples = TrainingSamples(
        sources=[(small_index, split)],
        rows=[(0, row) for row in range(len(split))],
        field=settings.text.field,
        tokenizer=tokenizer,
        image=settings.image,
    )
    numbers = [0, 1, 4, 5, 7, 8]
    model = cls.build(settings, tokenizer)
    return Case(method, settings, model, tokenizer, samples[numbers].batch, [expressions[n] for n in numbers])


@pytest.fixture
def evaluated(case: Case) -> Iterator[Case]:
    """The case in evaluation mode, with running statistics that differ from their start."""
    case.model.train()
    with torch.no_grad():
        case.model.loss(case.batch)
    case.model.eval()
    with torch.inference_mode():
        yield case


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


def test_every_variant_resolves_alone_and_with_tiny(method: str) -> None:
    path = methods.recipe_file(method)
    for name in recipe.variant_names(path):
        assert recipe.load(path, [name])[1] == [name]
        assert recipe.load(path, ["tiny", name])[0]


def test_every_variant_builds_from_scratch(case: Case) -> None:
    """Alone and of the small network; without memory, for it may be large."""
    path = methods.recipe_file(case.name)
    for name in recipe.variant_names(path):
        for variants in ([name], ["tiny", name]):
            settings, _ = recipe.load(path, variants, ["text.max_tokens=15", "model.pretrained=false"])
            with torch.device("meta"):
                assert _size(methods.load(case.name).build(settings, case.tokenizer)) > 0


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


def test_loss_terms_are_finite_scalars_with_a_total(case: Case) -> None:
    case.model.train()
    terms = case.model.loss(case.batch)
    assert "total" in terms and len(terms) > 1
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("empty", [slice(0, 1), slice(None)])
def test_loss_and_gradients_are_finite_without_a_target(case: Case, empty: slice) -> None:
    assert case.batch.mask is not None
    mask = case.batch.mask.clone()
    mask[empty] = 0
    model = copy.deepcopy(case.model).train()
    terms = model.loss(case.batch._replace(mask=mask))
    assert all(torch.isfinite(term) for term in terms.values())
    torch.autograd.backward(terms["total"])
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_gradients_reach_every_parameter_that_is_not_frozen_with_a_reason(case: Case) -> None:
    """From the second step on: the last normalisation of a residual block may start at zero."""
    model = _build(case, seed=1)
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(case.batch)["total"])
        optimizer.step()
    names = {name: parameter for name, parameter in model.named_parameters()}
    frozen = {name for name in names if name.startswith(tuple(model.frozen))}
    assert {name for name, p in names.items() if p.grad is None or not p.grad.any()} == frozen
    assert all(any(name.startswith(start) for name in frozen) for start in model.frozen)
    assert all(len(reason) > 20 for reason in model.frozen.values())
    optimised = [p for group in model.parameter_groups() for p in group["params"]]
    assert len(optimised) == len({id(p) for p in optimised})
    assert {id(p) for p in optimised} == {id(p) for name, p in names.items() if name not in frozen}


def test_predictions_are_probabilities_with_peaks_on_their_grid(evaluated: Case) -> None:
    prediction = evaluated.model.predict(evaluated.batch)
    assert prediction.probability.ndim == 3 and len(prediction.probability) == len(evaluated.expressions)
    assert prediction.probability.min() >= 0 and prediction.probability.max() <= 1
    if prediction.peak is not None:
        limits = torch.tensor(prediction.probability.shape[1:])
        assert prediction.peak.shape == (len(evaluated.expressions), 2)
        assert (prediction.peak >= 0).all() and (prediction.peak < limits).all()


def test_a_batch_gives_the_same_as_its_expressions_alone(evaluated: Case) -> None:
    together = evaluated.model.predict(evaluated.batch).probability
    for number in range(len(evaluated.expressions)):
        alone = evaluated.model.predict(_one(evaluated.batch, number)).probability[0]
        assert torch.allclose(alone, together[number], atol=1e-5)


def test_more_padding_changes_nothing(evaluated: Case) -> None:
    batch = evaluated.batch
    wider = Words(*(torch.cat((part, torch.zeros_like(part[:, :3])), dim=1) for part in batch.words))
    assert torch.allclose(
        evaluated.model.predict(batch._replace(words=wider)).probability,
        evaluated.model.predict(batch).probability,
        atol=1e-5,
    )


def test_the_words_change_predictions_but_not_the_image_features(evaluated: Case) -> None:
    batch = evaluated.batch
    other = batch._replace(words=evaluated.tokenizer(evaluated.expressions[::-1]))
    assert not torch.allclose(_logit(evaluated, other), _logit(evaluated, batch), atol=1e-4)
    features = zip(evaluated.model.encode_image(other), evaluated.model.encode_image(batch), strict=True)
    assert all(torch.equal(a, b) for a, b in features)


def test_predict_is_encode_image_then_predict_from(evaluated: Case) -> None:
    features = repeat_for_expressions(evaluated.model.encode_image(evaluated.batch), evaluated.batch.image_index)
    probability = evaluated.model.predict_from(features, evaluated.batch.words).probability
    assert torch.equal(probability, evaluated.model.predict(evaluated.batch).probability)


@pytest.mark.parametrize("chosen", [True, False])
def test_an_explanation_is_maps_or_one_sentence_with_advice(evaluated: Case, chosen: bool) -> None:
    number = 2  # of the batch: "bar on the left of the box"
    word = max(evaluated.expressions[number].split(), key=len) if chosen else ""
    tokens = evaluated.tokenizer.places(evaluated.expressions[number], word) if word else []
    batch = _one(evaluated.batch, number)
    before = evaluated.model.predict(batch).probability
    try:
        panels = evaluated.model.explain(batch, tokens)
    except InputError as error:
        assert "\n" not in str(error) and ("--word" in str(error) or "--explain" in str(error))
        return
    assert panels and all(panel.title.strip() and "\n" not in panel.title for panel in panels)
    for _, values in panels:
        assert values.ndim == 2 and values.is_floating_point() and values.isfinite().all()
        assert values.min() >= 0 and values.max() <= 1
    assert torch.equal(evaluated.model.predict(batch).probability, before)


def test_the_places_of_words_hold_words(case: Case) -> None:
    """All places of all words of an expression are the positions of its words, less what stands around the sentence."""
    words = case.tokenizer(case.expressions)
    for expression, ids, mask in zip(case.expressions, *words, strict=True):
        positions: set[int] = set()
        for word in expression.split():
            try:
                positions |= set(case.tokenizer.places(expression, word))
            except InputError as error:
                assert "cut off" in str(error)
        assert positions <= set(mask.nonzero()[:, 0].tolist())
        assert len(positions) >= int(mask.sum()) - 2  # [CLS] and [SEP]
        assert len(ids) == case.tokenizer.max_tokens


def test_its_operations_can_be_counted(case: Case) -> None:
    """More expressions, more work; outside inference mode, as a run counts them."""
    case.model.eval()
    assert count_flops(case.model, case.batch) > count_flops(case.model, _one(case.batch, 0)) > 0


def test_a_checkpoint_predicts_the_same(evaluated: Case, tmp_path: Path) -> None:
    facts = Facts(
        method=evaluated.name,
        variants=["tiny"],
        training_data=["small"],
        weights=evaluated.model.weights,
        seed=0,
        epoch=1,
        training_seconds=0.0,
    )
    checkpoint.save(tmp_path / "best", evaluated.model, evaluated.tokenizer, evaluated.recipe, facts)
    model, tokenizer = Checkpoint(tmp_path / "best").model()
    again = model.eval().predict(evaluated.batch._replace(words=tokenizer(evaluated.expressions)))
    assert torch.equal(again.probability, evaluated.model.predict(evaluated.batch).probability)


def test_the_tokenizer_pickles(case: Case) -> None:
    copy = pickle.loads(pickle.dumps(case.tokenizer))
    assert all(map(torch.equal, copy(case.expressions), case.tokenizer(case.expressions)))


def test_a_shorter_tokenizer_gives_the_first_tokens(case: Case) -> None:
    """A protocol may cut expressions elsewhere than the recipe."""
    ids = case.tokenizer(case.expressions).ids
    assert case.tokenizer.max_tokens == ids.shape[1] == 8
    assert torch.equal(case.tokenizer.limited(3)(case.expressions).ids, ids[:, :3])


def test_two_builds_from_one_seed_train_to_the_same_weights(case: Case) -> None:
    assert all(map(torch.equal, _trained(case), _trained(case)))


def test_the_full_size_network_builds_from_scratch(case: Case) -> None:
    settings, _ = recipe.load(methods.recipe_file(case.name), [], ["text.max_tokens=15", "model.pretrained=false"])
    full = methods.load(case.name).build(settings, case.tokenizer)
    assert _size(full) > 10 * _size(case.model)


def _one(batch: Batch, number: int) -> Batch:
    image = int(batch.image_index[number])
    words = Words(*(part[number : number + 1] for part in batch.words))
    return Batch(batch.image[image : image + 1], torch.tensor([0]), words, None)


def _logit(case: Case, batch: Batch) -> Tensor:
    return case.model.predict(batch).probability.logit(eps=1e-6)


def _build(case: Case, seed: int) -> Method:
    torch.manual_seed(seed)
    return methods.load(case.name).build(case.recipe, case.tokenizer).train()


def _trained(case: Case) -> list[Tensor]:
    model = _build(case, seed=1)
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(case.batch)["total"])
        optimizer.step()
    return list(model.state_dict().values())


def _size(model: Method) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
