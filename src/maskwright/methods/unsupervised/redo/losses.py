"""What ReDO's players are told (NeurIPS 2019, arXiv 1905.13539).

Legend: B photographs, K regions, nz numbers of noise a region, S side.
"""

from __future__ import annotations

from torch import Tensor


def composites(x: Tensor, masks: Tensor, drawn: Tensor) -> Tensor:
    """x'_k = G_k(m_k, z_k) + (1 - m_k) x for every k: the photograph with one region redrawn.

    Args:
        x: photographs (B, 3, S, S) in [-1, 1].
        masks: m (B, K, S, S), of sum 1.
        drawn: G_k(m_k, z_k) (B, K, 3, S, S), already times m_k.

    Returns:
        (B K, 3, S, S), those of a photograph together.
    """
    return (drawn + (1 - masks[:, :, None]) * x[:, None]).flatten(0, 1)


def recovery_loss(z: Tensor, recovered: Tensor) -> Tensor:
    """Mean of (z - Z(sum_k G_k))^2: what was drawn must tell the noise behind it, so that no region can vanish.

    Args:
        z: noise (B, K, nz).
        recovered: of that shape.
    """
    return (z - recovered).square().mean()
