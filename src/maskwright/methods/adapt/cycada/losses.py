"""The losses of CycleGAN and CyCADA, as functions of what the networks said. Images are in [-1, 1].

Legend: B batch, C classes, S crop side; s source, t target; G translates s to t, F translates t to s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor

from maskwright.ops.losses.seg_losses import cross_entropy
from maskwright.recipes.adversarial.adversary import least_squares
from maskwright.recipes.training.criteria import IGNORE

SOURCE, TARGET = 1, 0
"""What ADDA's discriminator calls the domains."""


@dataclass(frozen=True)
class Weights:
    """Weights of the generators' terms.

    Attributes:
        gan: of G's adversarial term; F's has 1.
        cycle: lambda.
        identity: of identity, as a share of lambda.
        semantic: of semantic consistency.
    """

    gan: float = 1.0
    cycle: float = 10.0
    identity: float = 0.5
    semantic: float = 0.0


class Played(NamedTuple):
    """What the generators made of crops, all (B, 3, S, S).

    Attributes:
        fake_t: G(s).
        fake_s: F(t).
        back_s: F(G(s)).
        back_t: G(F(t)).
        same_t: G(t); None where identity has no weight.
        same_s: F(s); likewise.
    """

    fake_t: Tensor
    fake_s: Tensor
    back_s: Tensor
    back_t: Tensor
    same_t: Tensor | None = None
    same_s: Tensor | None = None


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L_D = 1/2 (mean (D(real) - 1)^2 + mean D(fake)^2) of verdicts of any shape."""
    return 0.5 * (least_squares(real, 1.0) + least_squares(fake, 0.0))


def generator_terms(s: Tensor, t: Tensor, played: Played, d_t: Tensor, d_s: Tensor, w: Weights) -> dict[str, Tensor]:
    """What both generators minimise but for semantic consistency, with its sum as `loss`:

        gan ((D_T(G(s)) - 1)^2) + (D_S(F(t)) - 1)^2 + cycle (|F(G(s)) - s| + |G(F(t)) - t|)
            + identity cycle (|G(t) - t| + |F(s) - s|),  each a mean

    Args:
        s: source crops (B, 3, S, S).
        t: target crops.
        played: what the generators made of them.
        d_t: D_T(G(s)), verdicts of any shape.
        d_s: D_S(F(t)).
        w: the weights.
    """
    terms = {
        "gan_t": least_squares(d_t, 1.0),
        "gan_s": least_squares(d_s, 1.0),
        "cycle": fn.l1_loss(played.back_s, s) + fn.l1_loss(played.back_t, t),
    }
    loss = w.gan * terms["gan_t"] + terms["gan_s"] + w.cycle * terms["cycle"]
    if w.identity > 0 and played.same_t is not None and played.same_s is not None:
        terms["identity"] = fn.l1_loss(played.same_t, t) + fn.l1_loss(played.same_s, s)
        loss = loss + w.identity * w.cycle * terms["identity"]
    return {"loss": loss, **terms}


def semantic_consistency(judged_t: Tensor, y_s: Tensor, judged_s: Tensor, k_t: Tensor) -> Tensor:
    """CE(f_S(G(s)), y) + CE(f_S(F(t)), argmax f_S(t)).

    Args:
        judged_t: logits of f_S on G(s), (B, C, S, S).
        y_s: labels of s, int64 (B, S, S), `IGNORE` where there is none.
        judged_s: logits of f_S on F(t).
        k_t: what f_S says of t, likewise.
    """
    return cross_entropy(judged_t, y_s, ignore=IGNORE) + cross_entropy(judged_s, k_t, ignore=IGNORE)


def is_heard(judge_loss: Tensor, limit: float) -> bool:
    """Whether semantic consistency counts: while the cross-entropy of f_S on s itself is at most `limit`."""
    return float(judge_loss) <= limit


def domain_loss(scores_s: Tensor, scores_t: Tensor) -> Tensor:
    """L_D of ADDA: cross-entropy with 1 for the source and 0 for the target, mean over the places of both.

    Args:
        scores_s: D's logits on the source (B, 2, h, w).
        scores_t: on the target.
    """
    return _named(torch.cat([scores_s, scores_t]), [SOURCE] * len(scores_s) + [TARGET] * len(scores_t))


def fooling(scores_t: Tensor) -> Tensor:
    """What the target's features minimise: cross-entropy of D's logits (B, 2, h, w) on them with `source`."""
    return _named(scores_t, [SOURCE] * len(scores_t))


def _named(scores: Tensor, domains: list[int]) -> Tensor:
    target = torch.tensor(domains, device=scores.device)[:, None, None].expand(-1, *scores.shape[-2:])
    return fn.cross_entropy(scores, target)


def told_apart(scores_s: Tensor, scores_t: Tensor) -> Tensor:
    """Where D is right, bool (n,), over all places of both, of logits (B, 2, h, w)."""
    right = [scores_s.argmax(1) == SOURCE, scores_t.argmax(1) == TARGET]
    return torch.cat([r.flatten() for r in right])
