"""CLIPSeg agrees with transformers' own forward; its weights come from folders; only its decoder learns."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.errors import InputError
from risbench.nn import hub
from risbench.nn.byte_pairs import BytePairTokenizer

RECIPE = methods.recipe_file("clipseg")
TEXTS = ["left box", "the red thing on the right side of it", "a"]


def settings(*overrides: str, variants: tuple[str, ...] = ("tiny",)) -> recipe.Recipe:
    return recipe.load(RECIPE, variants, overrides)[0]


def build(*overrides: str, seed: int = 0) -> Any:
    """A small random network, in double precision."""
    chosen = settings(*overrides)
    torch.manual_seed(seed)
    tokenizer = methods.load("clipseg").tokenizer(chosen, [])
    return methods.load("clipseg").build(chosen, tokenizer).double().eval()


def batch(side: int = 64) -> Batch:
    """Three expressions of two images, the later expression first."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    words = BytePairTokenizer.of_bytes(77, 77)(TEXTS)
    return Batch(images, torch.tensor([1, 0, 1]), words, torch.zeros(3, side, side, dtype=torch.float64))


def of_transformers(network: Any, batch: Batch) -> Tensor:
    """The probabilities of transformers' own forward, called once, with every image repeated for its expressions."""
    inputs = {"input_ids": batch.words.ids, "attention_mask": batch.words.mask.long()}
    with torch.no_grad():
        logits: Tensor = network(pixel_values=batch.image[batch.image_index], **inputs).logits
    return logits.sigmoid()


@pytest.mark.parametrize("side", [32, 64, 96])  # position embeddings are of 32
@pytest.mark.parametrize("refined", ["true", "false"])
def test_the_probabilities_are_those_of_transformers(side: int, refined: str) -> None:
    model = build(f"model.refined={refined}")
    chosen = batch(side)
    probability = model.predict(chosen).probability
    assert probability.shape == (3, side, side) and probability.std() > 0.01
    torch.testing.assert_close(probability.double(), of_transformers(model.network, chosen), rtol=0, atol=1e-5)


@torch.no_grad()
def test_neither_padding_nor_the_batch_matters() -> None:
    model, whole = build(), batch()
    together = model.predict(whole).probability
    for row in range(3):
        length = int(whole.words.mask[row].sum())
        alone = Words(whole.words.ids[row : row + 1, :length], whole.words.mask[row : row + 1, :length])
        image = whole.image[whole.image_index[row]][None]
        other = model.predict(Batch(image, torch.tensor([0]), alone, None)).probability
        torch.testing.assert_close(other[0], together[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((64, 80), "reads square images, and this one is 64 x 80: set image.size"),
        ((72, 72), "image.size=72 cannot be filled by patches of 16 pixels .model.patch.: give a multiple of 16"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, int], says: str) -> None:
    image = torch.zeros(2, 3, *shape, dtype=torch.float64)
    with pytest.raises(InputError, match=says):
        build().encode_image(batch()._replace(image=image))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.taps=[0,3]", r"model.taps=\[0, 3\] must rise, and name layers from 0 to 2"),
        ("model.taps=[1,0]", r"model.taps=\[1, 0\] must rise"),
        ("model.heads=5", "5 heads cannot share 32 channels"),
        ("model.position_size=40", "model.position_size=40 cannot be filled by patches of 16"),
        ("model.patch=8", "model.refined=true is a decoder for patches of 16"),
    ],
)
def test_settings_that_fit_no_network_are_one_sentence(override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(override)


def test_only_the_decoder_learns() -> None:
    model = build().float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=1e-2)
    chosen = batch()
    chosen = chosen._replace(image=chosen.image.float(), mask=torch.ones(3, 64, 64))
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        terms = model.loss(chosen)
        torch.autograd.backward(terms["total"])
        optimizer.step()
        losses.append(float(terms["total"].detach()))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("network.decoder.")}
    assert losses[2] < losses[0]


def test_the_loss_is_transformers_own() -> None:
    model, chosen = build(), batch()
    truth = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(2)) > 0.7).double()
    expected = model.network(
        input_ids=chosen.words.ids, pixel_values=chosen.image[chosen.image_index], labels=truth
    ).loss
    torch.testing.assert_close(model.loss(chosen._replace(mask=truth))["total"], expected, rtol=0, atol=1e-10)


# weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a small random network as the hub has it."""
    model = build(seed=5).float()
    model.network.save_pretrained(tmp_path / "released")
    BytePairTokenizer.of_bytes(77, 77).save(tmp_path / "released")
    return tmp_path / "released"


def load(folder: Path, *overrides: str) -> tuple[Any, Any]:
    chosen = settings(f"model.weights={folder}", *overrides)
    tokenizer = methods.load("clipseg").tokenizer(chosen, [])
    model = methods.load("clipseg").build(chosen, tokenizer)
    return model, model.load_pretrained(chosen, tokenizer)


def test_a_folder_of_weights_becomes_the_network(folder: Path) -> None:
    model, [loaded] = load(folder)
    hashed = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (loaded.part, loaded.source, loaded.sha256, loaded.hashed) == (
        "CLIPSegForImageSegmentation",
        str(folder),
        hashed,
        "file",
    )
    assert loaded.training_data is None  # the recipe declares them
    expected = of_transformers(build(seed=5).network, batch())
    torch.testing.assert_close(model.double().eval().predict(batch()).probability.double(), expected, rtol=0, atol=1e-5)


def test_a_name_of_the_hub_is_kept_with_its_revision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "snapshots" / "0123abc"
    cached.parent.mkdir()
    folder.rename(cached)
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns[1]))
        return str(cached)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    _, [loaded] = load(Path("owner/released"))
    assert (loaded.source, loaded.detail) == ("owner/released", "revision 0123abc")
    assert set(asked) == {("owner/released", "model.safetensors")}


@pytest.mark.parametrize(
    ("gated", "cure"), [("false", "Connect to the Hugging Face hub"), ("true", "They are gated: ")]
)
def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch, gated: str, cure: str) -> None:
    def snapshot(name: str, allow_patterns: list[str]) -> str:
        raise OSError("401 Client Error\nand more")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    says = rf"The pretrained weights owner/none cannot be loaded \(OSError\). {cure}.* once, or give model.weights=FOLD"
    with pytest.raises(InputError, match=says) as error:
        load(Path("owner/none"), f"train.gated={gated}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=rf"model.weights=.* lacks {missing}.*\. Give a folder with config.json, "):
        load(folder)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/nowhere does not exist\. Give a folder with config.json"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.heads=4", "have vision_config.num_attention_heads=2, and the recipe builds 4: give model.heads=2."),
        ("model.taps=[0,1]", r"have extract_layers=\[0, 1, 2\], and the recipe builds \[0, 1\]: give model.taps="),
        ("model.hidden=96", "have vision_config.intermediate_size=64, and the recipe builds 96: give model.hidden=64."),
    ],
)
def test_weights_of_another_network_name_the_key_to_set(folder: Path, override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(folder, override)


def test_what_no_key_sets_must_be_the_released_value(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["conditional_layer"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="have conditional_layer=1, and the recipe builds 0: give other weights."):
        load(folder)


def test_weights_that_are_not_whole_or_not_finite_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "decoder.film_mul.weight"
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"1 of .* weights hold NaN or infinite numbers, first {name}"):
        load(folder)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lack 1 of CLIPSegForImageSegmentation, first {name}"):
        load(folder)
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as CLIPSegForImageSegmentation") as error:
        load(folder)
    assert "\n" not in str(error.value)


class _Code:
    """Runs code where a pickle is loaded without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_of_weights_is_read_without_running_code(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    model, [loaded] = load(folder)
    assert loaded.sha256 == hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    assert torch.equal(model.network.decoder.film_mul.weight, tensors["decoder.film_mul.weight"])
    torch.save({**tensors, "code": _Code(tmp_path / "was-run")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as CLIPSegForImageSegmentation") as error:
        load(folder)
    assert "\n" not in str(error.value) and not (tmp_path / "was-run").exists()
