"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Method = Annotated[str, typer.Option(help="Name of a method, path of its folder, or reference[/A,B] (no learning).")]
TrainedMethod = Annotated[str, typer.Option("--method", help="Name of a method, or path of its folder.")]
Dataset = Annotated[str, typer.Option(help="Name of a data set, or path of a card.")]
Variant = Annotated[str, typer.Option(help="Variants of the recipe, composed left to right: a,b.")]
Splits = Annotated[str, typer.Option("--split", help="Splits: val,testA. Default: all evaluation splits.")]
Protocols = Annotated[str, typer.Option("--protocol", help="Protocols: original,lts.")]
Root = Annotated[
    str, typer.Option(help="Folder with the layout of the refer API. Default: RISBENCH_DATA, then ./data.")
]
Images = Annotated[str, typer.Option(help="Folder of the images, if it is not the card's.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Accept an incomplete copy; every result is marked as partial.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**9,
        metavar="N",
        help="Read only the first N images of every split, for a quick try; every result is marked as partial.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and print what would be done; start and write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")]
Runs = Annotated[Path, typer.Option(help="Folder for new runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides of the recipe, each section.key=value: train.lr=3e-5 model.glove=FILE. A method's recipe.toml"
        " and its README list the keys; an unknown section or key prints those that are known.",
        show_default=False,
    ),
]
Checkpoint = Annotated[str, typer.Option(help="Folder of a trained checkpoint.")]
CheckpointMethod = Annotated[
    str, typer.Option("--method", help="Folder of the checkpoint's method, if it is not known by its name.")
]
Seeds = Annotated[str, typer.Option("--seed", help="One seed or several: 0,1,2.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Folder of a killed run to continue; if its data moved, with --data-root or --images."),
]
RecordFolders = Annotated[
    list[Path] | None, typer.Option("--records", help="Folders of records. Default: results/records and runs.")
]
Init = Annotated[str, typer.Option(help="Checkpoint whose weights and vocabulary training starts from.")]
