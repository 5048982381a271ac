"""Learning rates of parameters by their names (train.rates)."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from risbench import methods, recipe
from risbench.api import Method
from risbench.engine import optim
from risbench.errors import InputError
from risbench.recipe import Train
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

LTS = recipe.load(methods.recipe_file("lts"))[0].train
RunCommand = Callable[..., tuple[int, str, str]]


class Network(nn.Module):
    """Two groups; the parameters of `frozen` are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"embedding": nn.Embedding(2, 2), "lstm": nn.Linear(2, 2)})
        self.image = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        biases = [parameter for name, parameter in trained.items() if name.endswith("bias")]
        rest = (parameter for name, parameter in trained.items() if not name.endswith("bias"))
        return [{"params": rest}, {"params": biases, "weight_decay": 0.0, "lr": 0.5}]


def rates_of(model: nn.Module, rates: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The rate and the weight decay of each parameter in the optimiser, half way through the training."""
    settings: Train = LTS.model_copy(update={"rates": rates, "lr": 0.1, "weight_decay": 0.01})
    groups = optim.parameter_groups(cast(Method, model), settings)
    made = optim.build_optimizer(groups, settings)
    optim.set_rate(made, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed = [(names[id(p)], group) for group in made.param_groups for p in group["params"]]
    assert len(placed) == len(dict(placed)) and all(group["params"] for group in made.param_groups)
    return {name: (round(group["lr"], 9), group["weight_decay"]) for name, group in placed}


def test_the_longest_prefix_counts_and_a_group_keeps_its_settings() -> None:
    assert rates_of(Network(), {"text.": 0.1, "text.embedding": 0.0001, "image.bias": 2}) == {
        "image.weight": (0.05, 0.01),
        "image.bias": (0.5, 0.0),
        "text.embedding.weight": (0.000005, 0.01),
        "text.lstm.weight": (0.005, 0.01),
        "text.lstm.bias": (0.025, 0.0),
    }


def test_without_rates_the_groups_are_those_of_the_method() -> None:
    model = Network()
    groups = optim.parameter_groups(cast(Method, model), LTS)
    assert [group.keys() for group in groups] == [{"params"}, {"params", "weight_decay", "lr"}]
    assert [len(group["params"]) for group in groups] == [3, 2]
    assert rates_of(model, {"": 1.0}) == rates_of(model, {})


def test_parameters_without_a_factor_come_first_in_their_group() -> None:
    """The log shows the rate of the first group."""
    settings = LTS.model_copy(update={"rates": {"text.embedding.": 0.1}})
    groups = optim.parameter_groups(cast(Method, Network()), settings)
    assert groups[0]["lr"] == LTS.lr and [len(group["params"]) for group in groups] == [2, 1, 2]


@pytest.mark.parametrize("prefix", ["txt.", "text.lstm.weights", "frozen.", "Text."])
def test_a_prefix_of_no_trained_parameter_is_refused_with_the_nearest_names(prefix: str) -> None:
    with pytest.raises(InputError, match=f"begins with '{prefix}'. The nearest beginnings are .*'text.*: write one"):
        rates_of(Network(), {"image.": 0.5, prefix: 0.1})


@pytest.fixture
def job(small_root: Path, small_card: Path, short_training: list[str]) -> Job:
    overrides = [*short_training, 'train.rates={"network.text." = 1e-9, "network.text.vectors." = 1}']
    return Job(method="lts", dataset=str(small_card), overrides=overrides, data_root=str(small_root), splits=["val"])


def test_a_factor_of_the_command_line_reaches_the_weights_and_is_stored(job: Job, tmp_path: Path) -> None:
    before: dict[str, torch.Tensor] = {}
    run = open_run(job, tmp_path)
    build = methods.load("lts").build
    with pytest.MonkeyPatch.context() as patch:

        def recorded(*arguments: Any) -> Method:
            model = build(*arguments)
            before.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
            return model

        patch.setattr(methods.load("lts"), "build", recorded)
        opened = train(run)
    model, _ = opened.model()
    moved = {name: not torch.allclose(p, before[name], atol=1e-7) for name, p in model.named_parameters()}
    text = {name for name in moved if name.startswith("network.text.")}
    assert text and {name for name in text if moved[name]} == {name for name in text if ".vectors." in name}
    assert all(moved[name] for name in moved.keys() - text)
    assert opened.recipe.train.rates == {"network.text.": 1e-9, "network.text.vectors.": 1.0}


def test_a_wrong_prefix_is_refused_before_and_in_a_run_and_leaves_no_folder(
    job: Job, run_command: RunCommand, small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    options = ["--method", "lts", "--dataset", str(small_card), "--data-root", str(small_root), *job.overrides]
    for command in (["run", "--dry-run"], ["train"]):
        code, _, err = run_command(*command, *options, 'train.rates={"network.txt." = 0.1}')
        assert code == 2 and "'network.txt.'. The nearest beginnings are 'network.text.'" in err
    assert not list((tmp_path / "runs").glob("*"))
    code, out, err = run_command("run", "--dry-run", *options)
    assert code == 0, err


def test_rates_in_a_variant_and_as_an_override() -> None:
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["train.rates={'a.b' = 2}", "train.ema=0.5"])
    assert settings.train.rates == {"a.b": 2.0} and settings.train.ema == 0.5
    assert recipe.validate(tomllib.loads(recipe.dumps(settings)), "stored") == settings
    for wrong in ("train.rates={'a' = 0}", "train.rates={'a' = -1}", "train.rates={'a' = 'b'}", "train.rates=0.1"):
        with pytest.raises(InputError, match="train.rates"):
            recipe.load(methods.recipe_file("lts"), ["tiny"], [wrong])


def test_the_rates_of_a_variant_are_read(tmp_path: Path) -> None:
    text = methods.recipe_file("lts").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(text + '\n[variant.slow.train]\nrates = {"network.text." = 0.1}\n')
    settings, applied = recipe.load(tmp_path / "recipe.toml", ["slow"])
    assert settings.train.rates == {"network.text.": 0.1} and applied == ["slow"]
