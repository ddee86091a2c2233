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
from diffusers.guiders.guider_utils import rescale_noise_cfg

from stedm.config import Guidance, checked
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.objective import clean_image_weights

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
    *,
    objective: str,
) -> torch.Tensor:
    """The guided prediction of one step, by the formula above; `guidance.interval` is the caller's business.

    Args:
        noisy: `(b, latent_channels, h, w)`.
        timestep: scalar or `(b,)`, the same for all.
        layout: class indices `(b, height, width)`; `denoiser.unknown` = unknown.
        style: `(b, style_dim)`.
        objective: `eps`, `v` or `flow`; what the prediction means.
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
    if guidance.rescale > 0.0 and n > 1:
        guided = _rescaled(guided, conditional, noisy, float(timestep.flatten()[0]), guidance.rescale, objective)
    return guided


def _rescaled(
    guided: torch.Tensor,
    conditional: torch.Tensor,
    noisy: torch.Tensor,
    timestep: float,
    amount: float,
    objective: str,
) -> torch.Tensor:
    """Bring the spread of the guided clean image back to that of the conditional one (Lin et al. 2024, section 3.4).

    diffusers' pipelines rescale whatever the network predicts. Lin et al. predict v, which at the pure-noise end of
    their schedule is the clean image but for its sign. A flow (noise - image) holds the noise as well: shrinking
    it by r would leave a part (1 - r) of the noise in the image. So the clean images that the predictions imply
    are rescaled, which means the same for every objective: the image keeps the contrast of the conditional one.
    """
    of_noisy, of_prediction = clean_image_weights(objective, timestep)
    clean, clean_conditional = (
        of_noisy * noisy + of_prediction * prediction.float() for prediction in (guided, conditional)
    )
    return (rescale_noise_cfg(clean, clean_conditional, amount) - of_noisy * noisy) / of_prediction
