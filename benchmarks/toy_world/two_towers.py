"""Trains a small pair of towers on captions: `python -m benchmarks.toy_world.two_towers --data FOLDER --out TOWERS`.

CLIP (Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020) in open_clip's own network, with the symmetric
cross-entropy between pictures and captions, a temperature that learns below a limit, and clipped gradients. TOWERS is a
folder in open_clip's format, that `--backbone clip --weights TOWERS` takes. Equal captions of a batch are all right.
Training goes on from the last checkpoint; it stops after `--steps`, or `--minutes` of the processor (of all threads
together), whichever comes first.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from maskwright import api
from maskwright.data.trust.files import atomic_write

WARMEST = math.log(100)
"""Greatest logarithm of the factor of the cosines, as CLIP's."""


def description(side: int, patch: int, width: int, layers: int) -> dict[str, Any]:
    """The pair's build in open_clip's format."""
    return {
        "embed_dim": 64, "quick_gelu": False,
        "vision_cfg": {"image_size": side, "patch_size": patch, "width": width, "layers": layers, "head_width": 32},
        "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }  # fmt: skip


def contrast(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """The symmetric cross-entropy between pictures and captions.

    Args:
        images, texts: (B, E), of unit length.
        scale: factor of the cosines.
        same: bool (B, B), captions that are the same words; their pictures share the probability.

    Returns:
        A number: the mean of both directions.
    """
    logits = scale * images @ texts.T
    wanted = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


def read_pairs(data: Path, split: str, side: int) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Pictures uint8 (N, 3, S, S), shorter side resized and the middle taken, and the captions of each."""
    folder = api.open_folder(data)
    folder = folder.split(split) if split else folder
    images, captions = [], []
    for i in range(len(folder)):
        if not folder.items[i].captions:
            continue
        picture = Image.fromarray(folder.image(i))
        if picture.size != (side, side):
            w, h = picture.size
            factor = side / min(w, h)
            picture = picture.resize((max(side, round(w * factor)), max(side, round(h * factor))), Image.BICUBIC)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        captions.append(folder.captions(i))
    return torch.stack(images), captions


class PairTraining:
    """Network, optimiser and where the training stands.

    Args:
        config: as `description`.
        images, captions: as `read_pairs` gives them.
        steps, batch, lr, seed: of the training.
    """

    def __init__(
        self, config: dict[str, Any], images: Tensor, captions: list[tuple[str, ...]], steps: int, batch: int,
        lr: float, seed: int = 0,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.model: Any = open_clip.CLIP(**config)
        self.images, self.captions, self.steps, self.batch, self.lr, self.seed = (
            images,
            captions,
            steps,
            batch,
            lr,
            seed,
        )
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
        self.step = 0
        pixels = images.float()
        self.mean, self.std = pixels.mean((0, 2, 3)) / 255, pixels.std((0, 2, 3)) / 255
        length = config["text_cfg"]["context_length"]
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=length)
        self.tokens = [tokenizer(list(texts)) for texts in captions]
        self.mask = self.model.attn_mask

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S), normalised and moved by up to four pixels, and tokens (B, T) of one caption each."""
        random = np.random.default_rng((self.seed, step))
        chosen = random.choice(len(self.images), self.batch, replace=False)
        x = self.images[torch.from_numpy(chosen)].float() / 255
        x = (x - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        top, left = random.integers(0, 9, 2)
        side = x.shape[-1]
        x = F.pad(x, (4, 4, 4, 4), "reflect")[:, :, top : top + side, left : left + side]
        rows = [self.tokens[i][random.integers(len(self.tokens[i]))] for i in chosen]
        return x, torch.stack(rows)

    def texts(self, tokens: Tensor) -> Tensor:
        """Vectors (B, E) of captions; no token sees those behind it, so what lies behind the longest is left out."""
        longest = int(tokens.argmax(1).max()) + 1
        model, own = self.model, self.model.positional_embedding
        x = model.token_embedding(tokens[:, :longest]) + own[:longest]
        x = model.ln_final(model.transformer(x, attn_mask=self.mask[:longest, :longest]))
        ends = x[torch.arange(len(x)), tokens.argmax(1)]
        return F.normalize(ends @ model.text_projection, dim=1)

    def update(self) -> tuple[float, float]:
        """One step; gives its loss and the share of pictures whose own caption is the nearest."""
        warm, done = 200, self.step / self.steps
        rate = self.lr * min(1.0, (self.step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, tokens = self.draw(self.step)
        images, texts = self.model.encode_image(x, normalize=True), self.texts(tokens)
        same = (tokens[:, None] == tokens[None]).all(2)
        loss = contrast(images, texts, self.model.logit_scale.exp(), same)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, WARMEST)
            right = same[torch.arange(len(x)), (images @ texts.T).argmax(1)].float().mean()
        self.step += 1
        return float(loss.detach()), float(right)

    def save(self, path: Path) -> None:
        """Writes where the training stands."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        with atomic_write(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Goes on from there."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def write_towers(training: PairTraining, config: dict[str, Any], out: Path) -> None:
    """The pair in open_clip's format, in half precision, which keeps it below 20 MB."""
    norm = {"mean": training.mean.tolist(), "std": training.std.tolist()}
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": norm}, indent=1))
    state = training.model.state_dict()
    tensors = {k: v.half().contiguous() for k, v in state.items() if k != "attn_mask"}
    save_file(tensors, out / "open_clip_model.safetensors")


def main() -> None:
    """Trains, and writes the pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train", help="empty for the whole folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1350)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = description(options.side, options.patch, options.width, options.layers)
    images, captions = read_pairs(options.data, options.split, options.side)
    training = PairTraining(config, images, captions, options.steps, min(options.batch, len(images)), options.lr)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.out / "checkpoint.pt", options.out / "log.jsonl"
    if checkpoint.exists():
        training.load(checkpoint)
    start, losses = time.process_time(), []
    while training.step < options.steps and time.process_time() - start < 60 * options.minutes:
        losses.append(training.update())
        if training.step % 25 == 0 or training.step == options.steps:
            loss, right = np.mean(losses, 0)
            row = {"step": training.step, "loss": round(float(loss), 4), "right": round(float(right), 4),
                   "scale": round(float(training.model.logit_scale.detach().exp()), 2),
                   "seconds": round(time.process_time() - start, 1)}  # fmt: skip
            print(row, flush=True)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            losses = []
        if training.step % 200 == 0:
            training.save(checkpoint)
            write_towers(training, config, options.out)
    training.save(checkpoint)
    write_towers(training, config, options.out)


if __name__ == "__main__":
    main()
