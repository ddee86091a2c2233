"""Style-extracting diffusion models for semi-supervised histopathology segmentation.

An independent implementation of Öttl et al., ECCV 2024 (arXiv 2403.14429).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion as StyleDiffusion

__version__ = "0.1.0"
__all__ = ["StyleDiffusion", "__version__"]


def __getattr__(name: str):
    # Imported on first use: `import stedm` and `stedm --help` must not wait for torch.
    if name == "StyleDiffusion":
        from stedm.diffusion.pipeline import StyleDiffusion

        return StyleDiffusion
    raise AttributeError(f"module 'stedm' has no attribute {name!r}")
