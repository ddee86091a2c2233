"""Style-extracting diffusion models for semi-supervised histopathology segmentation.

An independent implementation of Öttl et al., ECCV 2024 (arXiv 2403.14429). What is here is all that most users need:

    import stedm

    stedm.check("DATASET")                    # what is wrong with a dataset folder; [] = nothing
    summary = stedm.run("DATASET", "RUN")     # the whole experiment, as `stedm run`
    segmenter = stedm.Segmenter.from_pretrained("RUN/segmenters/real+stain+synthetic/seed-0")
    masks = segmenter.predict(images)         # uint8 (n, H, W, 3) -> (n, H, W)

`DatasetFolder` opens a dataset, `StyleDiffusion` paints layouts in the style of images, `StyleBank` holds the styles of
a cohort, `Guidance` and `Sampling` say how images are drawn. Bad input raises `stedm.errors.StedmError`, of one line.
"""

from typing import TYPE_CHECKING, Any

from stedm.version import __version__

if TYPE_CHECKING:
    from stedm.config import Guidance as Guidance
    from stedm.config import Sampling as Sampling
    from stedm.data.folder import DatasetFolder as DatasetFolder
    from stedm.diffusion.pipeline import StyleDiffusion as StyleDiffusion
    from stedm.experiment.api import check as check
    from stedm.experiment.api import run as run
    from stedm.segmentation.segmenter import Segmenter as Segmenter
    from stedm.synthesis.style_bank import StyleBank as StyleBank

__all__ = [
    "DatasetFolder",
    "Guidance",
    "Sampling",
    "Segmenter",
    "StyleBank",
    "StyleDiffusion",
    "__version__",
    "check",
    "run",
]

_PLACES = {
    "DatasetFolder": "stedm.data.folder",
    "Guidance": "stedm.config",
    "Sampling": "stedm.config",
    "Segmenter": "stedm.segmentation.segmenter",
    "StyleBank": "stedm.synthesis.style_bank",
    "StyleDiffusion": "stedm.diffusion.pipeline",
    "check": "stedm.experiment.api",
    "run": "stedm.experiment.api",
}


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562): `import stedm` and `stedm --help` must not wait for torch.
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stedm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
