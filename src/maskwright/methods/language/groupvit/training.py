"""GroupViT's training: photographs against captions and their words, GroupViT (CVPR 2022), section 3.3.

Legend: B photographs of this process, K words of a caption, E channels of the joint space.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from maskwright.data.training.augment import photometric
from maskwright.data.training.captioned import Captioned, CaptionStream
from maskwright.engine import seeding
from maskwright.engine.context import Context
from maskwright.engine.distributed import gather_rows, rank, sampler, world_size
from maskwright.engine.loop import Training
from maskwright.engine.schedules import cosine
from maskwright.errors import MaskwrightError
from maskwright.models.backbones.dense import autocast
from maskwright.models.preprocess import Preprocess
from maskwright.models.towers.groupvit.files import MULTI, GroupPair, text_state
from maskwright.models.towers.groupvit.network import LENGTH, ImageTower, TextTower
from maskwright.models.towers.groupvit.tower import GroupTower
from maskwright.models.towers.prompts import TEMPLATES
from maskwright.models.towers.text import clip_tokens
from maskwright.ops.losses.captions import caption_contrast, word_contrast
from maskwright.recipes.clustering_health import ClusteringHealth
from maskwright.recipes.pretraining.instance import synchronised
from maskwright.recipes.training.drawing import StreamSetup
from maskwright.recipes.training.forward import precision_of
from maskwright.recipes.training.optimizers import NOT_DECAYED


class Scale(nn.Module):
    """The learned scale of the contrast with words, as its logarithm."""

    def __init__(self, log_scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale))


def start_of(context: Context) -> GroupTower:
    """The run's backbone, which `check_backbone` made sure is a GroupViT."""
    assert isinstance(context.backbone, GroupTower)
    return context.backbone


def captioned(context: Context) -> list[int]:
    """The photographs of the run that have captions; how many have none is said."""
    found = [i for i, item in enumerate(context.data.items) if item.captions]
    if left := len(context.data) - len(found):
        context.note(f"{left} of {len(context.data)} photographs have no caption and are not trained on.")
    captions = [c for i in found for c in context.data.items[i].captions]
    if long := sum(len(c.split()) > LENGTH - 2 for c in captions):
        context.note(
            f"{long} of {len(captions)} captions are longer than the {LENGTH} tokens that the text tower reads."
        )
    return found


def groups_of(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: norms, biases, scales, positions and group tokens are not decayed."""
    kept: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        last = name.rpartition(".")[2]
        vector = p.ndim <= 1 or last in (*NOT_DECAYED, "positional_embedding", "group_token")
        kept[not vector].append(p)
    return [{"params": ps, "lr": lr, "weight_decay": weight_decay if d else 0.0} for d, ps in kept.items() if ps]


class ContrastTraining(Training):
    """Both towers on captioned photographs, stream `c`.

    Args:
        context: of the run, whose backbone is where the towers start.
        config: options.
        steps: of the stage.
    """

    def __init__(self, context: Context, config: Any, steps: int) -> None:
        tower = start_of(context)
        pair = tower.pair
        if pair is None:
            raise MaskwrightError(
                "a saved segmenter, whose text tower is not in it, and captions to learn from", "both towers",
                "give --weights RUN/towers of its run, or --backbone groupvit:small --weights random",
            )  # fmt: skip
        setup = StreamSetup(Preprocess.for_backbone(tower.provenance).network_input, context.device)
        super().__init__(setup)
        c, self.context, self.steps, self.device = config, context, steps, context.device
        self.config, self.shape = config, tower.shape
        seeding.initialise(context.seed, "train")
        self.image: ImageTower = copy.deepcopy(tower.tower)
        self.text, self.multi = text_towers(pair)
        if pair.file is None:
            self.image = ImageTower(tower.shape)
        stages: Any = self.image.encoder.layers
        for k, block in enumerate(blocks := [b for stage in stages for b in stage.blocks]):
            chance = c.drop_path * k / max(1, len(blocks) - 1)
            block.drop_path1 = block.drop_path2 = DropPath(chance) if chance else nn.Identity()
        self.modules = {"image": self.image, "text": self.text, "multi": self.multi}
        for name, module in self.modules.items():
            self.modules[name] = synchronised(module.to(self.device)).train()
        self.rate = c.optimizer.lr or (5e-4 if pair.file is None else 5e-5)
        groups = [g for m in self.modules.values() for g in groups_of(m, self.rate, c.optimizer.weight_decay)]
        self.optimizers = {"towers": torch.optim.AdamW(groups, lr=self.rate)}
        self.schedule = cosine(steps, c.optimizer.final, round(c.optimizer.warmup * steps))
        self.clip = c.optimizer.clip or None
        self.precision = precision_of(c.precision, self.device)
        setup.streams["c"] = self._stream()
        self.health = ClusteringHealth(tower.groups, steps, context.note)

    def _stream(self) -> CaptionStream:
        c, context, images = self.config, self.context, captioned(self.context)
        batch, processes = c.crops.batch, world_size()
        if batch % processes or batch // processes < 2:
            raise MaskwrightError(
                f"a batch of {batch} photographs for {processes} processes", "as many on each, two at least",
                f"set crops.batch={max(2, -(-batch // processes)) * processes}",
            )  # fmt: skip
        side = c.crops.size or self.shape.image
        tokenizer = clip_tokens(LENGTH)
        return CaptionStream(
            context.data, images, sampler(context.seed, len(images), batch),
            -(-side // self.shape.patch) * self.shape.patch,
            c.crops.scale_min, tokenizer, TEMPLATES["imagenet"], c.contrast.words,
            None if c.crops.recipe == "none" else photometric(c.crops.recipe),
        )  # fmt: skip

    # ------------------------------------------------------------------ the step

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """L = L_caption + weight L_words."""
        c: Captioned = batch["c"]
        b, offset = len(c.pixels), rank() * len(c.pixels)
        with autocast(self.device, self.precision):
            grouped = self.image.encoder(c.pixels)
            z = self.image.projector(grouped.average).float()  # (B, E)
            texts = self.text(c.tokens.flatten(0, 1)).float().unflatten(0, (b, -1))  # (B, 1 + K, E)
        all_z, all_texts = gather_rows(z), gather_rows(texts)
        l_caption = caption_contrast(z, texts[:, 0], self.image.log_scale, all_z, all_texts[:, 0], offset)
        terms = {"loss": l_caption, "caption": l_caption}
        if texts.shape[1] > 1:
            l_words = word_contrast(z, texts[:, 1:], self.multi.log_scale, all_z, all_texts[:, 1:], offset)
            terms |= {"loss": l_caption + self.config.contrast.weight * l_words, "words": l_words}
        return terms | self.health(grouped.maps.detach())

    def after_step(self, step: int) -> None:
        """Watches for groups that fall together."""
        self.health.after_step(step)


def text_towers(pair: GroupPair) -> tuple[TextTower, Scale]:
    """The text tower of a pair, drawn where the pair's is, and the scale of the contrast with words."""
    text, multi = TextTower(pair.shape), Scale()
    if pair.file is not None:
        tensors = pair.tensors()
        text.load_state_dict(text_state(tensors))
        if MULTI in tensors:
            multi.log_scale.data.copy_(tensors[MULTI])
    return text, multi
