"""Arguments and options that several commands take."""

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
Images = Annotated[str, typer.Option(help="Folder of the images, where it is another than the card's.")]
Partial = Annotated[bool, typer.Option("--partial", help="Accept an incomplete copy; every result will say so.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
Runs = Annotated[Path, typer.Option(help="Folder for new runs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides of the recipe: train.lr=3e-5", show_default=False)
]
Checkpoint = Annotated[str, typer.Option(help="Folder of a trained checkpoint.")]
Seeds = Annotated[str, typer.Option("--seed", help="One seed or several: 0,1,2.")]
Resume = Annotated[Path | None, typer.Option(help="Folder of a killed run to go on with; takes no other option.")]
RecordFolders = Annotated[
    list[Path] | None, typer.Option("--records", help="Folders of records. Default: results/records and runs.")
]
Init = Annotated[str, typer.Option(help="Checkpoint whose weights and words training starts from.")]
