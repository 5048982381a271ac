"""The commands of `risbench method`."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from risbench.cli.arguments import Json
from risbench.cli.commands import Commands

if TYPE_CHECKING:
    from risbench.gate.contract import Verdict

app = Commands(no_args_is_help=True, help="A method of your own: new, check.")


@app.command("new")
def method_new(
    name: Annotated[str, typer.Argument(help="Name of the method, which is that of its folder and its module.")],
    folder: Annotated[Path, typer.Option(help="Folder in which the method's folder is made.")] = Path("."),
) -> None:
    """Write the folder of a new method: a small network that trains on mini, to be changed."""
    from risbench.gate.scaffold import new_method

    written = new_method(name, folder)
    path = shlex.quote(str(written) if written.is_absolute() else os.path.join(".", written))
    print(f"{written}: {', '.join(sorted(file.name for file in written.iterdir()))}")
    print(f"Train it:  risbench run --method {path} --dataset mini\nCheck it:  risbench method check {path}")


@app.command("check")
def method_check(
    method: Annotated[str, typer.Argument(help="Path of the method's folder, or its name.")], as_json: Json = False
) -> None:
    """Examine a method under the contract with the harness; exit code 1 if it fails a demand."""
    from risbench.gate import contract

    verdicts = []
    for verdict in contract.examine(method):
        verdicts.append(verdict)
        if not as_json:
            print(_line(verdict), flush=True)
    failed = sum(verdict.state == "failed" for verdict in verdicts)
    if as_json:
        print(json.dumps([_row(verdict) for verdict in verdicts]))
    else:
        print(f"{method}: {f'{failed} of {len(verdicts)} demands failed' if failed else 'every demand is met'}")
    raise typer.Exit(1 if failed else 0)


def _line(verdict: Verdict) -> str:
    """Describe a verdict; what is wrong, and what to do, stand below a demand that failed."""
    line = f"{verdict.state:13}{verdict.demand.text}"
    return f"{line}\n{'':13}{verdict.problem}\n{'':13}{verdict.demand.cure}" if verdict.problem else line


def _row(verdict: Verdict) -> dict[str, str]:
    return {
        "demand": verdict.demand.text,
        "state": verdict.state,
        "problem": verdict.problem,
        "cure": verdict.demand.cure,
    }
