"""Checksums of the project's own formats, computed anew: what a hostile file would carry, so that what lies behind the
checksum is tried too. A format without one is left as it is."""

from __future__ import annotations

import json
import re
import struct
import zlib
from importlib.util import find_spec

TRAILER = re.compile(rb"maskwright crc32 [0-9a-f]{8}\n\Z")
"""What a checkpoint ends in."""
LEAD = re.compile(rb"\A[0-9a-f]{8}\n")
"""What a file of remembered facts begins with."""


def sealed(data: bytes, form: str) -> bytes | None:
    """The file with a checksum that fits, or None where its form holds none.

    Args:
        data: a file that was changed.
        form: as `mutations.mutate` takes it.
    """
    if form == "zip" and TRAILER.search(data):
        body = TRAILER.sub(b"", data)
        return body + b"maskwright crc32 %08x\n" % zlib.crc32(body)
    if form == "json" and LEAD.match(data):
        return b"%08x\n" % zlib.crc32(data[9:]) + data[9:]
    if form == "safetensors" and find_spec("maskwright.models.tensors") is not None:
        return _safetensors(data)
    return None


def _safetensors(data: bytes) -> bytes | None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    from maskwright.models.tensors import CHECKSUM, checksum

    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        metadata = header["__metadata__"]
        if CHECKSUM not in metadata:
            return None
        metadata[CHECKSUM] = checksum(load(data), metadata)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
