"""Serves an exported model with onnxruntime, numpy and pillow alone.

    maskwright export RUN --out model.onnx
    python serve.py model.onnx                          # a server on port 8000
    curl --data-binary @photograph.jpg http://127.0.0.1:8000/mask > mask.png
    curl http://127.0.0.1:8000/classes
    python serve.py model.onnx photograph.jpg mask.png  # or one photograph

The mask is an index PNG in the classes' colours, of the photograph's size. What `maskwright predict` does beyond the
file is not done here: tiles of large images, refinement, flips. The turn that an EXIF tag asks for is done below.
"""

from __future__ import annotations

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_BYTES = 64 * 2**20
"""Of a photograph that is sent."""


class Segmenter:
    """An exported model.

    Attributes:
        names: of the classes.
        colors: of the classes, three bytes each.
    """

    def __init__(self, path: str) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = self.session.get_modelmeta().custom_metadata_map
        self.names: list[str] = json.loads(told["classes"])
        self.colors: list[list[int]] = json.loads(told["colors"])

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """A picture of any size to class ids and their probability, both (H, W)."""
        ids, confidence = self.session.run(["ids", "confidence"], {"image": pixels(picture)})
        return ids, confidence

    def png(self, ids: np.ndarray) -> bytes:
        """Ids as an index PNG: a palette up to 255 classes, 16 bits above."""
        mask = Image.fromarray(ids)
        if ids.dtype == np.uint8:
            mask.putpalette([value for color in self.colors for value in color])
        out = io.BytesIO()
        mask.save(out, "PNG")
        return out.getvalue()


def pixels(picture: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3): turned as its EXIF tag says, transparency on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"a picture of mode {picture.mode}: bring its values to 8 bits first")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def server(segmenter: Segmenter, port: int) -> ThreadingHTTPServer:
    """POST /mask with a photograph gives its mask; GET /classes the names and colours."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/classes":
                return self.answer(404, "text/plain", b"POST /mask or GET /classes\n")
            table = [{"name": n, "color": c} for n, c in zip(segmenter.names, segmenter.colors, strict=True)]
            return self.answer(200, "application/json", json.dumps(table).encode())

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/mask" or not length.isdecimal() or int(length) > MAX_BYTES:
                return self.answer(400, "text/plain", b"POST a photograph of at most 64 MiB to /mask\n")
            try:
                with Image.open(io.BytesIO(self.rfile.read(int(length)))) as picture:
                    ids, _ = segmenter(picture)
            except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
                return self.answer(400, "text/plain", f"no picture that can be read: {error}\n".encode())
            return self.answer(200, "image/png", segmenter.png(ids))

        def answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an exported model.")
    parser.add_argument("model", help="what `maskwright export` wrote")
    parser.add_argument("photograph", nargs="?", help="one photograph instead of a server")
    parser.add_argument("mask", nargs="?", help="where its mask goes")
    parser.add_argument("--port", type=int, default=8000)
    said = parser.parse_args()
    if (said.photograph is None) != (said.mask is None):
        parser.error("a photograph needs a place for its mask: serve.py MODEL PHOTOGRAPH MASK")
    segmenter = Segmenter(said.model)
    if said.photograph is None:
        print(f"http://127.0.0.1:{said.port}/mask")
        server(segmenter, said.port).serve_forever()
        return
    with Image.open(said.photograph) as picture:
        ids, _ = segmenter(picture)
    with open(said.mask, "wb") as file:
        file.write(segmenter.png(ids))


if __name__ == "__main__":
    main()
