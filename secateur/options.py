"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Backend", "Cache", "Data", "Images", "Json", "Recipe"]

Backend = Annotated[str | None, typer.Option(help="Back end; native where the kernel is built, else tenseal.")]
Cache = Annotated[Path | None, typer.Option(help="Where the trained network is kept between runs.")]
Data = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Where data sets lie; SECATEUR_DATA otherwise."),
]
Images = Annotated[int, typer.Option(help="How many test images, from the first on.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
Recipe = Annotated[str, typer.Option(help="The recipe that makes the network: a name, or a TOML file.")]
