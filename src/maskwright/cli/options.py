"""What several verbs share: their common options, and how they print."""

from __future__ import annotations

from typing import Annotated

import typer

from maskwright.errors import MaskwrightError, shown

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Labels = Annotated[
    str | None, typer.Option(help="What mask values mean: auto, ids, binary255, from1, grey, levels or colours.")
]
Void = Annotated[str | None, typer.Option(help="The value (or values) of masks that means no class, or none.")]
Range = Annotated[str | None, typer.Option(help="LOW,HIGH: the stored values of images that become black and white.")]


def key_value(text: str) -> tuple[str, str]:
    """The name and the value of `--set key=value`."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise MaskwrightError(f"--set {text}", "--set key=value")
    return key.strip(), value.strip()


def echo(text: str) -> None:
    """Prints text whose file names the terminal does not obey."""
    typer.echo(shown(text, lines=True))


def print_json(value: object) -> None:
    """Prints a value as indented JSON."""
    import json

    typer.echo(json.dumps(value, indent=2))
