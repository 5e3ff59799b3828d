"""`examples/serve.py`, run as its users run it: without torch."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tests.conftest import REPOSITORY
from tests.one_convolution import colours, network_graph

from maskwright.data.pictures.images import read_image
from maskwright.models import tracing
from maskwright.predict.model import Model

SERVE = REPOSITORY / "examples" / "serve.py"
BLOCKED = """
import runpy, sys
sys.modules.update(torch=None, maskwright=None, scipy=None, timm=None)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model, its file, and a photograph that an EXIF tag turns."""
    folder = tmp_path_factory.mktemp("serve")
    model = Model(colours())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "network_graph", network_graph)
        model.export(folder / "model.onnx")
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    return model, folder


def test_serve_without_torch(served):
    model, folder = served
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, SERVE, folder / "model.onnx", folder / "turned.jpg", folder / "mask.png"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = Image.open(folder / "mask.png")
    assert mask.mode == "P" and mask.size == (40, 56)
    assert mask.getpalette()[:9] == model.classes.colors[:3].reshape(-1).tolist()
    image = np.asarray(Image.open(folder / "turned.jpg").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(np.asarray(mask), model.predict(image, refine="none", tile=0).mask)


def test_the_server(served):
    model, folder = served
    spec = importlib.util.spec_from_file_location("serve_example", SERVE)
    serve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    server = serve.server(serve.Segmenter(folder / "model.onnx"), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(f"{place}/classes", timeout=30) as answer:
            assert [c["name"] for c in json.load(answer)] == list(model.classes.names)
        clear = np.full((20, 30, 4), (200, 30, 30, 0), np.uint8)
        clear[:, :15, 3] = 255
        Image.fromarray(clear).save(folder / "clear.png")
        body = (folder / "clear.png").read_bytes()
        with urllib.request.urlopen(f"{place}/mask", body, timeout=30) as answer:
            mask = np.asarray(Image.open(io.BytesIO(answer.read())))
        assert np.array_equal(mask, model.predict(read_image(folder / "clear.png"), refine="none", tile=0).mask)
        for path, sent in (("/mask", b"no picture"), ("/other", body)):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(place + path, sent, timeout=30)
            assert error.value.code == 400
    finally:
        server.shutdown()
        server.server_close()
