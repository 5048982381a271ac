"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Method = Annotated[str, typer.Option(help="Name of a method, path of its folder, or reference[/A,B] (no learning).")]
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
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")]
Runs = Annotated[Path, typer.Option(help="Folder for new runs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides of the recipe: train.lr=3e-5", show_default=False)
]
Checkpoint = Annotated[str, typer.Option(help="Folder of a trained checkpoint.")]
Seeds = Annotated[str, typer.Option("--seed", help="One seed or several: 0,1,2.")]
Resume = Annotated[Path | None, typer.Option(help="Folder of a killed run to continue; takes no other option.")]
RecordFolders = Annotated[
    list[Path] | None, typer.Option("--records", help="Folders of records. Default: results/records and runs.")
]
Init = Annotated[str, typer.Option(help="Checkpoint whose weights and vocabulary training starts from.")]
