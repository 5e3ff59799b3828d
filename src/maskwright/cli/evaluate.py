"""`maskwright evaluate` and `probe`: how good masks, and encoders, are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Labels, Range, Void, echo, key_value


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of index PNG named as the images.")],
    truth: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    protocol: Annotated[str, typer.Option(help="How clusters are matched to classes and what is measured.")] = "direct",
    split: Annotated[str | None, typer.Option(help="Only the images of this split.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    predicted_labels: Annotated[
        str | None, typer.Option(help="What the values of the predictions mean, as --labels does of the truth.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out images without a prediction, and say how many.")
    ] = False,
    exclude_run: Annotated[
        list[Path] | None, typer.Option(help="Leave out the photographs that this run was trained on; may be repeated.")
    ] = None,
    by_name: Annotated[
        bool, typer.Option("--by-name", help="A predicted id is the truth's class of the same name.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Classes of the truth left out of all figures, names with commas between; may be repeated."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
) -> None:
    """Judge masks; the protocol is printed with each number."""
    from maskwright import api
    from maskwright.data.trust.files import write_json

    scores = api.evaluate(
        predictions, truth, protocol=protocol, split=split, labels=labels, void=void, range=range,
        predicted_labels=predicted_labels, allow_missing=allow_missing, exclude_run=exclude_run or (),
        by_name=by_name, without=without or (),
    )  # fmt: skip
    echo(scores.table())
    if json is not None:
        write_json(json, scores.to_json())


def probe(
    encoder: Annotated[str, typer.Argument(help="Run folder, model.safetensors, or the name of a backbone.")],
    data: Annotated[str, typer.Argument(help="Dataset folder, or layout:path.")],
    protocol: Annotated[str, typer.Option(help="distance, or semi (fine-tuning on the labelled share).")] = "distance",
    bank: Annotated[str, typer.Option(help="Split or file of the labelled images that it learns from.")] = "train",
    split: Annotated[str, typer.Option(help="Split of the images to judge.")] = "test",
    weights: Annotated[str | None, typer.Option(help="Of a named backbone: a checkpoint, package, or random.")] = None,
    out: Annotated[Path | None, typer.Option(help="For semi: the run folder of the fine-tuning.")] = None,
    steps: Annotated[int | None, typer.Option(help="For semi: optimiser steps.")] = None,
    seed: Annotated[int, typer.Option(help="For semi.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="For semi: an option of supervised.")] = None,
    labels: Labels = None,
    void: Void = None,
    range: Range = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
) -> None:
    """Judge an encoder by the protocols of the LUSS benchmark that use labels."""
    from maskwright import api
    from maskwright.data.trust.files import write_json

    scores = api.probe(
        encoder, data, protocol, bank=bank, split=split, weights=weights, out=out, steps=steps, seed=seed,
        device=device, settings=dict(key_value(s) for s in set_ or []), labels=labels, void=void, range=range,
    )  # fmt: skip
    echo(scores.table())
    if json is not None:
        write_json(json, scores.to_json())
