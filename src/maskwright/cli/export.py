"""`maskwright export`: a model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskwright.cli.options import Json, print_json


def export(
    model: Annotated[Path, typer.Argument(help="model.safetensors, a run folder, or hf:owner/name.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    json: Json = False,
) -> None:
    """Write a model as an ONNX file: uint8 image (H, W, 3) in, ids (H, W) and confidence (H, W) out.

    Inside: resize, normalisation, network, softmax, ids at the image's size; the same as predict --tile none --refine
    none. Not inside: decoding and the turn by EXIF, tiles, refinement (CRF or guided), flips, scales, tags. The file is
    run beside torch at three sizes and kept only where both agree to 1e-4, or as closely as rounding in float32 lets
    them. It needs pip install 'maskwright[export]'.
    """
    from maskwright import api
    from maskwright.engine.progress import Progress
    from maskwright.errors import MaskwrightError, unknown

    if format != "onnx":
        raise unknown("format", format, ("onnx",))
    if not out.name:
        raise MaskwrightError(f"--out {out}", "a file", "--out model.onnx")
    bar = Progress(quiet=json)
    bar.say("the network is followed step by step and written, which takes from seconds to minutes, then checked")
    done = api.load(model).export(out, format)
    if json:
        print_json(
            {
                "path": str(done.path),
                "bytes": done.bytes,
                "largest_difference": done.largest,
                "parity": [
                    {"size": list(p.size), "confidence": p.confidence, "ids": p.ids, "unequal": p.unequal}
                    for p in done.parity
                ],
                "notices": list(done.notices),
            }
        )
        return
    for sentence in done.notices:
        bar.say(sentence)
    sizes = ", ".join(f"{h} x {w}" for h, w in (p.size for p in done.parity))
    bar.say(f"checked against torch at {sizes}: they differ by {done.largest:.1g} at most")
    if done.rounding:
        bar.say(done.rounding)
    bar.say("outside the file: the turn by EXIF, tiles, refinement, flips, scales and tags (docs/export.md)")
    bar.say(f"{out}, {done.bytes / 1e6:.1f} MB")
