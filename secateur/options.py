"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Backend", "Cache", "Data", "Disclosure", "Images", "Json", "Magnitude", "Recipe"]

Backend = Annotated[str | None, typer.Option(help="Back end; native where the kernel is built, else tenseal.")]
Cache = Annotated[Path | None, typer.Option(help="Where the trained network is kept between runs.")]
Data = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Where data sets lie; SECATEUR_DATA otherwise."),
]
Disclosure = Annotated[
    str,
    typer.Option(help="What clients can tell of the model: the structure of its zeros, or its shape only."),
]
Images = Annotated[int, typer.Option(help="How many test images, from the first on.", min=1)]
Magnitude = Annotated[
    float | None,
    typer.Option(help="With --disclosure shape: what every tensor may reach; clients may infer it. 256 by default."),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
Recipe = Annotated[str, typer.Option(help="The recipe that makes the network: a name, or a TOML file.")]
