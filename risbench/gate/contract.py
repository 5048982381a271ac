"""The contract between the harness and a method, demand by demand: `risbench method check` examines each.

A check returns what is wrong, or "". What a method of this repository has to have besides (a README of some length, a
variant tiny, its own loss terms) is in tests/test_methods.py.
"""

from __future__ import annotations

import inspect
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from risbench import methods, recipe
from risbench.api import Method, Prediction, Words, repeat_for_expressions
from risbench.data import pretrained
from risbench.engine import checkpoint, sanity
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.errors import InputError
from risbench.gate.contract_case import SMALL, Case
from risbench.nn.weights import check_finite
from risbench.runs.cost import count_flops

Check = Callable[[Case], str]
TOLERANCE = 1e-5  # between probabilities that should be equal


@dataclass(frozen=True)
class Demand:
    """One demand of the contract, what to do where it fails, and its check."""

    text: str
    cure: str
    check: Check
    is_basic: bool  # without it the later ones cannot be examined
    of_training: bool  # of a method that can be trained


@dataclass(frozen=True)
class Verdict:
    """The outcome of a demand."""

    demand: Demand
    state: Literal["ok", "failed", "not examined"]
    problem: str = ""


DEMANDS: list[Demand] = []


def demand(text: str, cure: str, is_basic: bool = False, of_training: bool = False) -> Callable[[Check], Check]:
    """Register a check as that of a demand, in the order in which they are examined."""

    def register(check: Check) -> Check:
        DEMANDS.append(Demand(text, cure, check, is_basic, of_training))
        return check

    return register


def examine(method: str) -> Iterator[Verdict]:
    """Examine every demand on a method, by name or path. Raises InputError when there is no such method."""
    case, is_usable = Case(method), True
    for one in DEMANDS:
        is_examined = is_usable and (case.trains or not one.of_training)
        problem = find_problem(one, case) if is_examined else ""
        yield Verdict(one, "failed" if problem else "ok" if is_examined else "not examined", problem)
        is_usable = is_usable and not (problem and one.is_basic)


def find_problem(one: Demand, case: Case) -> str:
    """Return what is wrong with a method under one demand, or ""."""
    try:
        return one.check(case)
    except InputError as error:
        return str(error)
    except Exception as error:  # the method's code may raise anything
        place = _place(error, methods.folder(case.method))
        return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _place(error: Exception, folder: Path) -> str:
    """Return the last line of the method's own code that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(folder)]
    return f" ({Path(frames[-1].filename).relative_to(folder)}, line {frames[-1].lineno})" if frames else ""


@demand(
    "recipe.toml has every section and key of a recipe, and each variant resolves, alone and with tiny.",
    "Mend recipe.toml; risbench method new writes one in which every key is explained.",
    is_basic=True,
)
def _recipe(case: Case) -> str:
    path = methods.recipe_file(case.method)
    names = recipe.variant_names(path)
    for name in ["", *names]:
        recipe.load(path, [name] if name else [])
        recipe.load(path, [SMALL, name] if name and SMALL in names else [])
    return ""


@demand(
    "NAME.py has a class Model, which derives from risbench.api.Method and defines its abstract methods.",
    "Define what is missing; risbench/api.py describes each method.",
    is_basic=True,
)
def _code(case: Case) -> str:
    if not (inspect.isclass(case.cls) and issubclass(case.cls, Method)):
        return "Model does not derive from risbench.api.Method"
    missing = ", ".join(sorted(case.cls.__abstractmethods__))
    return f"Model does not define {missing}" if missing else ""


@demand(
    "The tokenizer turns expressions into int64 ids and a bool mask, both (B, max_tokens), with a word in every row.",
    "Return Words(ids, mask); an expression without words becomes one unknown word.",
    is_basic=True,
)
def _tokenizer(case: Case) -> str:
    texts = [*case.expressions, "", "?!"]
    ids, mask = case.tokenizer(texts)
    shape = (len(texts), case.tokenizer.max_tokens)
    if tuple(ids.shape) != shape or tuple(mask.shape) != shape or (ids.dtype, mask.dtype) != (torch.int64, torch.bool):
        return (
            f"ids are {tuple(ids.shape)} of {ids.dtype}, the mask is {tuple(mask.shape)} of {mask.dtype}, not {shape}"
        )
    empty = next((text for text, row in zip(texts, mask, strict=True) if not row.any()), None)
    return "" if empty is None else f"the row of the expression {empty!r} has no word"


@demand(
    "A tokenizer pickles, for each loader process gets a copy.",
    "Keep what does not pickle out of the tokenizer's attributes.",
)
def _pickles(case: Case) -> str:
    copied = pickle.loads(pickle.dumps(case.tokenizer))
    same = all(map(torch.equal, copied(case.expressions), case.batch.words))
    return "" if same else "the copy gives other ids"


@demand(
    "limited(n) returns a tokenizer of n tokens, which a protocol may set.",
    "Return a copy with another max_tokens.",
)
def _limited(case: Case) -> str:
    limited, before = case.tokenizer.limited(3), case.tokenizer.max_tokens
    ids = limited(case.expressions).ids
    if limited.max_tokens != 3 or ids.shape[1] != 3:
        return f"limited(3) has max_tokens {limited.max_tokens} and gives ids {tuple(ids.shape)}"
    return "" if case.tokenizer.max_tokens == before else "limited(3) changes the tokenizer itself"


@demand(
    "places(expression, word) returns positions of words in the row of ids, or says that the word is cut off.",
    "Return the positions of the word's tokens; raise InputError when all of them are cut off.",
)
def _places(case: Case) -> str:
    for expression, mask in zip(case.expressions, case.batch.words.mask, strict=True):
        for word in expression.split():
            try:
                positions = case.tokenizer.places(expression, word)
            except InputError:
                continue
            if not positions or not all(mask[position] for position in positions):
                return f"{word!r} of {expression!r} is at {positions}, where the mask has no word"
    return ""


@demand(
    "build returns the network of the recipe, with finite weights.",
    "Build from the numbers of the recipe; a mask of -inf belongs in a buffer with persistent=False.",
    is_basic=True,
)
def _build(case: Case) -> str:
    model = case.build()
    check_finite(model.state_dict(), "the new network")
    return "" if isinstance(model, case.cls) else f"build returns a {type(model).__name__}"


@demand(
    "load_pretrained returns a list of risbench.api.Pretrained, one for each part, or an empty one.",
    "Return what was loaded; records show it, and what it was trained on.",
)
def _load_pretrained(case: Case) -> str:
    pretrained.check(case.build().load_pretrained(case.recipe, case.tokenizer), "Model")
    return ""


@demand(
    "loss returns finite scalars by name, one of them total; where train.epochs is 0, it may refuse in one sentence.",
    'Return {"total": ...} and, if you like, the terms it is made of; or raise InputError.',
    is_basic=True,
)
def _loss(case: Case) -> str:
    if not case.trains:
        return ""
    terms = case.build().loss(case.batch)
    if "total" not in terms:
        return f"the terms are {', '.join(terms) or 'none'}"
    return _wrong_terms(terms)


@demand(
    "Loss and gradients stay finite for an expression without a target, and for a batch of such expressions.",
    "Divide by no area that may be 0: add 1, or clamp it.",
    of_training=True,
)
def _no_target(case: Case) -> str:
    assert case.batch.mask is not None
    for empty, name in ((slice(0, 1), "one expression"), (slice(None), "the batch")):
        mask = case.batch.mask.clone()
        mask[empty] = 0
        model = case.build()
        terms = model.loss(case.batch._replace(mask=mask))
        torch.autograd.backward(terms["total"])
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        wrong = _wrong_terms(terms) or ", ".join(name for name, g in gradients.items() if not g.isfinite().all())
        if wrong:
            return f"without a target in {name}, not finite: {wrong}"
    return ""


@demand(
    "Every parameter gets a gradient, but for those whose names begin as `frozen` says, with a reason.",
    "Remove parameters that do nothing, or name them in `frozen`; processes of one training wait for all gradients.",
    of_training=True,
)
def _gradients(case: Case) -> str:
    frozen, gradients = case.build().frozen, case.gradients()
    idle = [name for name, gradient in gradients.items() if gradient is None]
    unexplained = [name for name in idle if not name.startswith(tuple(frozen))]
    if unexplained:
        return f"no gradient: {', '.join(unexplained)}"
    wrong = [start for start, reason in frozen.items() if not any(n.startswith(start) for n in idle) or not reason]
    return f"frozen, but trained, unknown or without a reason: {', '.join(wrong)}" if wrong else ""


@demand(
    "parameter_groups returns each trained parameter once.",
    "Give every trained parameter to one group; freeze the others by requires_grad_(False).",
    of_training=True,
)
def _groups(case: Case) -> str:
    model = case.build()
    groups = [id(parameter) for group in model.parameter_groups() for parameter in group["params"]]
    trained = {id(p): name for name, p in model.named_parameters() if not name.startswith(tuple(model.frozen))}
    missing = [name for number, name in trained.items() if number not in groups]
    if missing:
        return f"in no group: {', '.join(missing)}"
    return "" if len(groups) == len(set(groups)) else "a parameter is in two groups"


@demand(
    "Two trainings from one seed give the same weights.",
    "Draw random numbers from torch's generator alone.",
    of_training=True,
)
def _seed(case: Case) -> str:
    first, second = case.trained(), case.trained()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    return f"different: {', '.join(different)}" if different else ""


@demand(
    "A prediction is one map of probabilities for each expression, its peaks are cells of that map, and its no-target"
    " answers probabilities (B,).",
    "Return Prediction(probability (B, h, w) in [0, 1], peak (B, 2) or None, no_target (B,) in [0, 1] or None).",
    is_basic=True,
)
def _prediction(case: Case) -> str:
    sanity.check_prediction(case.predict(case.batch), len(case.expressions), "it", case.expressions)
    return ""


@demand(
    "An expression has the same prediction alone as in a batch.",
    "Use no statistics of the batch in evaluation mode, and image_index to find the image of each expression.",
)
def _alone(case: Case) -> str:
    together = case.predict(case.batch)
    for number, expression in enumerate(case.expressions):
        alone, expected = case.predict(case.one(number)), _one(together, number)
        if not _difference(alone, expected) <= TOLERANCE:  # NaN is no agreement
            return f"{expression!r} differs by {_difference(alone, expected):.2g}"
    return ""


@demand(
    "More padding behind the words changes no prediction.",
    "Read words.mask: what is False must not count, and a row may be longer than the recipe's max_tokens.",
)
def _padding(case: Case) -> str:
    wider = Words(*(torch.cat((part, torch.zeros_like(part[:, :3])), dim=1) for part in case.batch.words))
    largest = _difference(case.predict(case.batch._replace(words=wider)), case.predict(case.batch))
    return f"predictions differ by {largest:.2g}" if largest > TOLERANCE else ""


@demand(
    "encode_image does not depend on the words, and predict is encode_image followed by predict_from.",
    "Leave the words to predict_from, and predict as Method defines it.",
)
def _encode_image(case: Case) -> str:
    other = case.batch._replace(words=case.tokenizer(case.expressions[::-1]))
    with torch.inference_mode():
        features, reversed_features = case.evaluated.encode_image(case.batch), case.evaluated.encode_image(other)
        repeated = repeat_for_expressions(features, case.batch.image_index)
        prediction = case.evaluated.predict_from(repeated, case.batch.words)
    if not all(torch.equal(*pair) for pair in zip(features, reversed_features, strict=True)):
        return "other words give other features"
    same = _difference(prediction, case.predict(case.batch)) == 0
    return "" if same else "predict gives another probability than the two in a row"


@demand(
    "A prediction runs with gradients on, too, where its operations are counted.",
    "Change no tensor in place that a gradient needs.",
)
def _operations(case: Case) -> str:
    count_flops(case.evaluated, case.batch)
    return ""


@demand(
    "A checkpoint that was saved and loaded predicts the same.",
    "Keep all that is learned in parameters, buffers and the tokenizer; build the rest from the recipe.",
)
def _checkpoint(case: Case) -> str:
    facts = Facts(
        method=case.method,
        variants=[],
        training_data=[],
        pretrained=case.evaluated.pretrained,
        seed=0,
        epoch=1,
        training_seconds=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "best", case.evaluated, case.tokenizer, case.recipe, facts)
        model, tokenizer = Checkpoint(Path(folder) / "best").model()
    with torch.inference_mode():
        again = model.eval().predict(case.batch._replace(words=tokenizer(case.expressions)))
    return "" if _difference(again, case.predict(case.batch)) == 0 else "the probabilities differ"


@demand(
    "explain returns maps (h, w) in [0, 1] with titles, or refuses in one sentence, and changes no prediction.",
    "Return Panels, or raise InputError, which says what to leave out.",
)
def _explain(case: Case) -> str:
    batch, expression = case.one(0), case.expressions[0]
    before = case.predict(batch).probability
    for tokens in ([], case.tokenizer.places(expression, max(expression.split(), key=len))):
        try:
            with torch.inference_mode():
                panels = case.evaluated.explain(batch, tokens)
        except InputError as error:
            if "\n" in str(error):
                return f"the refusal has several lines: {error}"
            continue
        for title, values in panels:
            if values.ndim != 2 or not (values.is_floating_point() and values.min() >= 0 and values.max() <= 1):
                return f"the map {title!r} is {tuple(values.shape)}, with values from {values.min()} to {values.max()}"
        if not panels or not all(title.strip() and "\n" not in title for title, _ in panels):
            return "a map without a title of one line, or no map"
    return "" if torch.equal(case.predict(batch).probability, before) else "the prediction after it is another one"


def _one(prediction: Prediction, number: int) -> Prediction:
    """Return the prediction of one expression of a batch."""
    rows = slice(number, number + 1)
    no_target = prediction.no_target
    return Prediction(prediction.probability[rows], no_target=None if no_target is None else no_target[rows])


def _difference(one: Prediction, other: Prediction) -> float:
    """Return the largest difference of the probabilities, those of no-target included; inf if only one has these."""
    largest = float((one.probability - other.probability).abs().max())
    if one.no_target is None and other.no_target is None:
        return largest
    if one.no_target is None or other.no_target is None:
        return float("inf")
    return max(largest, float((one.no_target - other.no_target).abs().max()))


def _wrong_terms(terms: dict[str, torch.Tensor]) -> str:
    """Name the terms that are no finite scalars."""
    wrong = [f"{name} {tuple(t.shape)}" for name, t in terms.items() if t.ndim or not t.isfinite()]
    return f"no finite scalar: {', '.join(wrong)}" if wrong else ""
