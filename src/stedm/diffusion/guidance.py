"""Classifier-free guidance (Ho & Salimans 2022) with two conditions, style s and layout c.

    guided = D(0, c) + style * (D(s, c) - D(0, c)) + (layout - 1) * (D(s, c) - D(s, 0))

where D is the prediction, D(0, c) that with the learned null style and D(s, 0) that with the layout unknown everywhere.
Read as scores, it samples p(x | s, c) p(s | x, c)^(style - 1) p(c | x, s)^(layout - 1): each condition is sharpened
while the other is held. All predictions of a step are one batched pass, and one whose weight is 1 is not computed.

InstructPix2Pix (Brooks et al. 2023, eq. 3) drops the conditions one after the other: its layout term would be
D(0, c) - D(0, 0). With us the layout is known for annotated images alone, so that this difference also holds what
annotated images look like beside the others; with the style held at s (as in Liu et al. 2022, each condition against
its own absence) the difference is the layout's alone, and D(s, 0) is what unannotated images train.
"""

import torch

from stedm.config import Guidance, checked
from stedm.diffusion.denoiser import StyleDenoiser

__all__ = ["Guidance", "as_guidance", "guided_prediction"]


def as_guidance(guidance: "float | Guidance") -> Guidance:
    """A number is guidance on style alone. StedmError if it is negative."""
    return guidance if isinstance(guidance, Guidance) else checked(Guidance, {"style": guidance}, "guidance")


def guided_prediction(
    denoiser: StyleDenoiser,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    layout: torch.Tensor,
    style: torch.Tensor,
    guidance: Guidance,
) -> torch.Tensor:
    """The guided prediction of one step, by the formula above.

    Args:
        noisy: `(b, latent_channels, h, w)`.
        timestep: scalar or `(b,)`, the same for all.
        layout: class indices `(b, height, width)`; `denoiser.unknown` = unknown.
        style: `(b, style_dim)`.
    """
    null = denoiser.null_style.expand_as(style)
    conditions = [(layout, style)]
    if guidance.style != 1.0:
        conditions.append((layout, null))
    if guidance.layout != 1.0:
        conditions.append((torch.full_like(layout, denoiser.unknown), style))
    n = len(conditions)
    layouts, styles = (torch.cat(parts) for parts in zip(*conditions, strict=True))
    predictions = denoiser.denoise(
        torch.cat([noisy] * n), torch.cat([timestep.expand(len(noisy))] * n), layouts, styles
    ).chunk(n)
    conditional = guided = predictions[0]
    if guidance.style != 1.0:
        without_style = predictions[1]
        guided = without_style + guidance.style * (conditional - without_style)
    if guidance.layout != 1.0:
        guided = guided + (guidance.layout - 1.0) * (conditional - predictions[-1])
    return guided
