"""The losses of CycleGAN and CyCADA, as functions of what the networks said. Images are in [-1, 1].

Legend: B batch, C classes, S crop side; s source, t target; G translates s to t, F translates t to s. Where it is
said what lies inside a photograph, bool (B, S, S), neither pixels nor verdicts on the padding around it count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from maskwright.ops.losses.seg_losses import cross_entropy, reduce_pixels
from maskwright.recipes.adversarial.adversary import at_places, least_squares
from maskwright.recipes.training.criteria import IGNORE

SOURCE, TARGET = 1, 0
"""What ADDA's discriminator calls the domains."""
Inside = tuple[Tensor, Tensor]
"""What lies inside the photographs of source and target, each bool (B, S, S)."""


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


def discriminator_loss(real: Tensor, fake: Tensor, inside: Inside | None = None) -> Tensor:
    """L_D = 1/2 (mean (D(real) - 1)^2 + mean D(fake)^2) of verdicts (B, 1, h, w), of any shape where all count.

    Args:
        real: on photographs of the domain.
        fake: on what was translated into it.
        inside: of these photographs, and of those that were translated; None: all counts.
    """
    of_real, of_fake = inside or (None, None)
    return 0.5 * (least_squares(real, 1.0, of_real) + least_squares(fake, 0.0, of_fake))


def distance(a: Tensor, b: Tensor, inside: Tensor | None) -> Tensor:
    """Mean |a - b| of images (B, 3, S, S), of what lies inside where that is said, bool (B, S, S)."""
    losses = (a - b).abs()
    return losses.mean() if inside is None else reduce_pixels(losses, inside[:, None].expand_as(losses))


def generator_terms(
    s: Tensor, t: Tensor, played: Played, d_t: Tensor, d_s: Tensor, w: Weights, inside: Inside | None = None
) -> dict[str, Tensor]:
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
        inside: of s and t; None: all counts.
    """
    of_s, of_t = inside or (None, None)
    terms = {
        "gan_t": least_squares(d_t, 1.0, of_s),
        "gan_s": least_squares(d_s, 1.0, of_t),
        "cycle": distance(played.back_s, s, of_s) + distance(played.back_t, t, of_t),
    }
    loss = w.gan * terms["gan_t"] + terms["gan_s"] + w.cycle * terms["cycle"]
    if w.identity > 0 and played.same_t is not None and played.same_s is not None:
        terms["identity"] = distance(played.same_t, t, of_t) + distance(played.same_s, s, of_s)
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


def domain_loss(scores_s: Tensor, scores_t: Tensor, inside: Inside | None = None) -> Tensor:
    """L_D of ADDA: cross-entropy with 1 for the source and 0 for the target, mean over the places of both.

    Args:
        scores_s: D's logits on the source (B, 2, h, w).
        scores_t: on the target.
        inside: of both; None: all counts.
    """
    named = zip((scores_s, scores_t), (SOURCE, TARGET), inside or (None, None))
    return cross_entropy(torch.cat([scores_s, scores_t]), torch.cat([_named(*one) for one in named]), ignore=IGNORE)


def fooling(scores_t: Tensor, inside: Tensor | None = None) -> Tensor:
    """What the target's features minimise: cross-entropy of D's logits (B, 2, h, w) on them with `source`; at places
    inside the photographs where these are given, bool (B, S, S)."""
    return cross_entropy(scores_t, _named(scores_t, SOURCE, inside), ignore=IGNORE)


def _named(scores: Tensor, domain: int, inside: Tensor | None) -> Tensor:
    """The domain at each place of scores (B, 2, h, w) that counts, else `IGNORE`: (B, h, w)."""
    return torch.full_like(scores[:, 0], IGNORE, dtype=torch.long).masked_fill(_counts(scores, inside), domain)


def _counts(scores: Tensor, inside: Tensor | None) -> Tensor:
    """Which places of scores (B, 2, h, w) count, bool (B, h, w)."""
    size = scores.shape[-2:]
    return torch.ones_like(scores[:, 0], dtype=torch.bool) if inside is None else at_places(inside, size)


def told_apart(scores_s: Tensor, scores_t: Tensor, inside: Inside | None = None) -> Tensor:
    """Where D is right, bool (n,), over the places of both that count.

    Args:
        scores_s: D's logits on the source (B, 2, h, w).
        scores_t: on the target.
        inside: of both; None: all counts.
    """
    named = zip((scores_s, scores_t), (SOURCE, TARGET), inside or (None, None))
    return torch.cat([(scores.argmax(1) == domain)[_counts(scores, of)] for scores, domain, of in named])
