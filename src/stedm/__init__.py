"""Style-extracting diffusion models for semi-supervised histopathology segmentation.

An independent implementation of Öttl et al., ECCV 2024 (arXiv 2403.14429).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stedm.config import Guidance as Guidance
    from stedm.diffusion.pipeline import StyleDiffusion as StyleDiffusion
    from stedm.segmentation.segmenter import Segmenter as Segmenter
    from stedm.synthesis.style_bank import StyleBank as StyleBank

__version__ = "0.1.0"
__all__ = ["Guidance", "Segmenter", "StyleBank", "StyleDiffusion", "__version__"]

_PLACES = {
    "Guidance": "stedm.config",
    "Segmenter": "stedm.segmentation.segmenter",
    "StyleBank": "stedm.synthesis.style_bank",
    "StyleDiffusion": "stedm.diffusion.pipeline",
}


def __getattr__(name: str):
    # Imported on first use: `import stedm` and `stedm --help` must not wait for torch.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stedm' has no attribute {name!r}")
