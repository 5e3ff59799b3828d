"""Does a change leave every weight as it was?

    python -m benchmarks.hashes > before.txt        # then the change, then
    python -m benchmarks.hashes --against before.txt

Trains every method of the table on a tiny folder, small as the contract suite makes it (`tests/methods`), one thread,
and prints a line a method: its name and the SHA-256 over the names, types, shapes and bytes of the tensors of its
bundle. Methods on words stand on tiny random towers. `--against` compares with an earlier output and exits with 1 where
a line differs; the methods are then those of that output. Hashes hold for one machine and one version of torch, and
for one version of this script: compare two trees by running it with PYTHONPATH on the one and on the other."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.conftest import write_tiny_folder
from tests.methods.test_contract import NAMES, options_of, run, settings_for


def hash_of(model: Path) -> str:
    """SHA-256 over the tensors of a bundle, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(name: str, data: Path, out: Path, steps: int) -> str:
    """Trains one method as the contract suite does, and the network behind words where there is one; the hash of its
    model."""
    plus = {"plus.train": True} if "plus.train" in options_of(name) else {}
    run(name, data, out, steps=steps, settings=settings_for(name, plus))
    return hash_of(out / "model.safetensors")


def main() -> int:
    """Prints the hashes, or what differs from an earlier output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=NAMES, metavar="METHOD")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--against", type=Path, help="an earlier output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = {}
    if options.against is not None:
        before = dict(line.split() for line in options.against.read_text().splitlines())
    methods, changed = options.methods or sorted(before) or NAMES, []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MASKWRIGHT_CACHE"] = str(Path(scratch, "cache"))
        data = write_tiny_folder(Path(scratch, "data"), count=10)
        for name in methods:
            found = train(name, data, Path(scratch, name), options.steps)
            differs = name in before and before[name] != found
            changed += [name] if differs else []
            print(f"{name} {found}", flush=True)
            if differs:
                print(f"{name} was {before[name]}", file=sys.stderr, flush=True)
    if before:
        print(f"{len(methods) - len(changed)} of {len(methods)} are as before", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
