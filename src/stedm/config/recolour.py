"""What is known about the stains: by how much they differ between patients."""

from stedm.config.base import Fraction, Part


class RecolourConfig(Part):
    """How much stains may differ between patients, told to every arm with stain augmentation and to the diffusion
    model alike, so that no arm knows more than another: a training image (with its style images, if it has any) gets
    more or less of each stain (see stedm.colour.recolour)."""

    probability: Fraction = 0.5
    """Part of the training samples that are recoloured; 0 = off."""
    haematoxylin: tuple[float, float] = (0.7, 1.3)
    """Range of the factor that scales the amount of a stain, drawn uniformly; below 0 counts as 0, so that
    (-0.5, 1.5) takes the stain away in a quarter of the recoloured samples."""
    eosin: tuple[float, float] = (0.7, 1.3)
    dab: tuple[float, float] = (0.7, 1.3)
