"""What the contract is examined on: a method's small network, and a batch of six expressions of three drawn images."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PIL
from PIL import ImageDraw
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Method, Prediction, Tokenizer, Words
from risbench.data import images
from risbench.errors import InputError
from risbench.recipe import Image, Recipe

SMALL = "tiny"  # the variant that is examined, if the recipe has it
MAX_TOKENS = 8  # where the recipe leaves it to the data set's card


class Drawn(NamedTuple):
    """An expression and its referent in one of the images: left, upper, right and lower edge, and colour."""

    image: int
    expression: str
    box: tuple[int, int, int, int]
    colour: str


SIZES = ((64, 48), (40, 60), (56, 40))  # width and height of the images
EXPRESSIONS = (
    Drawn(0, "the red box", (4, 4, 24, 24), "red"),
    Drawn(0, "left green box", (30, 6, 58, 40), "green"),
    Drawn(1, "thin blue bar", (2, 5, 38, 9), "blue"),
    Drawn(1, "bar on the left of the box", (12, 20, 18, 55), "yellow"),
    Drawn(2, "big box", (2, 2, 30, 34), "red"),
    Drawn(2, "white one, on the right", (34, 10, 54, 30), "white"),
)


class Case:
    """A method that is examined; its parts are made when they are first needed."""

    def __init__(self, method: str) -> None:
        self.method = methods.register(method)

    @cached_property
    def recipe(self) -> Recipe:
        """The settings of the small network, without pretrained weights where the recipe has a switch for them."""
        path = methods.recipe_file(self.method)
        variants = [SMALL] if SMALL in recipe.variant_names(path) else []
        settings, _ = recipe.load(path, variants)
        overrides = [] if settings.text.max_tokens else [f"text.max_tokens={MAX_TOKENS}"]
        overrides += ["model.pretrained=false"] if "pretrained" in settings.model else []
        return recipe.load(path, variants, overrides)[0]

    @cached_property
    def cls(self) -> type[Method]:
        """The class Model."""
        return methods.load(self.method)

    @cached_property
    def expressions(self) -> list[str]:
        """The texts of the batch."""
        return [drawn.expression for drawn in EXPRESSIONS]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, made from the texts of the batch."""
        return self.cls.tokenizer(self.recipe, self.expressions)

    @cached_property
    def batch(self) -> Batch:
        """The training batch."""
        settings = self.recipe.image
        with torch.inference_mode(
            False
        ):  # tensors of inference mode cannot be trained on, and a prediction may be first
            return Batch(
                image=torch.stack([_draw(number, settings) for number in range(len(SIZES))]),
                image_index=torch.tensor([drawn.image for drawn in EXPRESSIONS]),
                words=self.tokenizer(self.expressions),
                mask=torch.stack([_mask(drawn, settings) for drawn in EXPRESSIONS]),
            )

    @cached_property
    def trains(self) -> bool:
        """Whether the method can be trained: it may refuse if its recipe evaluates pretrained weights as they are."""
        if self.recipe.trains:
            return True
        try:
            self.build().loss(self.batch)
        except InputError:
            return False
        return True

    def build(self, seed: int = 0) -> Method:
        """Build the network anew."""
        torch.manual_seed(seed)
        return self.cls.build(self.recipe, self.tokenizer).train()

    @cached_property
    def evaluated(self) -> Method:
        """The network in evaluation mode, with running statistics that differ from their start."""
        model = self.build()
        if self.trains:
            with torch.no_grad():
                model.loss(self.batch)
        return model.eval()

    def predict(self, batch: Batch) -> Prediction:
        """Predict as the harness does."""
        model = self.evaluated  # made outside: parameters that are made in inference mode never have gradients
        with torch.inference_mode():
            return model.predict(batch)

    def one(self, number: int) -> Batch:
        """Return the evaluation batch of one expression with its image."""
        image = int(self.batch.image_index[number])
        words = Words(*(part[number : number + 1] for part in self.batch.words))
        return Batch(self.batch.image[image : image + 1], torch.tensor([0]), words, None)

    def gradients(self) -> dict[str, Tensor | None]:
        """Return each parameter's gradient in the second step; a normalisation may hold back the first one."""
        model = self.build(seed=1)
        self._take_two_steps(model, torch.optim.SGD(model.parameter_groups(), lr=1e-4))
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    def trained(self) -> dict[str, Tensor]:
        """Return the weights after two steps from one seed."""
        model = self.build(seed=1)
        self._take_two_steps(model, torch.optim.Adam(model.parameter_groups(), lr=1e-3))
        return model.state_dict()

    def _take_two_steps(self, model: Method, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(model.loss(self.batch)["total"])
            optimizer.step()


def _draw(number: int, settings: Image) -> Tensor:
    """Draw an image and make it a network input (3, H, W)."""
    width, height = SIZES[number]
    picture = PIL.new("RGB", (width, height), (40, 40, 60 + 20 * number))
    for drawn in EXPRESSIONS:
        if drawn.image == number:
            ImageDraw.Draw(picture).rectangle(drawn.box, fill=drawn.colour)
    return images.to_input(picture, images.fit_to_input((height, width), settings), settings)


def _mask(drawn: Drawn, settings: Image) -> Tensor:
    """Return the ground truth of an expression on the network input (H, W)."""
    width, height = SIZES[drawn.image]
    left, upper, right, lower = drawn.box
    mask = np.zeros((height, width), np.bool_)
    mask[upper : lower + 1, left : right + 1] = True
    return images.mask_to_input(mask, images.fit_to_input((height, width), settings))
