"""Train, generate and segment from Python, on phantom patients: python examples/ten_lines.py [FOLDER]

About four minutes on one core. With a dataset folder of your own, leave `make_phantom` out.
"""

import sys
from pathlib import Path

import numpy as np

import stedm
from stedm.config import DiffusionConfig, PhantomConfig, SegmentationConfig, SynthesisConfig
from stedm.phantom.cohort import make_phantom
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan

PHANTOM = PhantomConfig(patients={"train": 4, "unlabeled": 12, "val": 1, "test": 8}, images_per_patient=8)
DIFFUSION = DiffusionConfig(steps=600, batch=8)
SYNTHESIS = SynthesisConfig(n_images=96)
SEGMENTATION = SegmentationConfig(steps=200)


def main(
    folder: Path,
    phantom: PhantomConfig = PHANTOM,
    diffusion: DiffusionConfig = DIFFUSION,
    synthesis: SynthesisConfig = SYNTHESIS,
    segmentation: SegmentationConfig = SEGMENTATION,
    image_px: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Images of one layout in the style of one patient, and masks of the test images."""
    make_phantom(phantom, folder / "data")

    data = stedm.DatasetFolder.open(folder / "data")
    annotated, unlabeled = data.annotated, data.split("unlabeled")
    model = stedm.StyleDiffusion.train(
        annotated, unlabeled, folder=folder / "diffusion", config=diffusion, image_px=image_px
    )
    patient = unlabeled.select(unlabeled.table["patient_id"] == unlabeled.patients()[0])
    images = model.generate(annotated[0]["mask"], style=[sample["image"] for sample in patient])
    synthesize(model, make_plan(synthesis, annotated, unlabeled, image_px=image_px), folder / "synthetic")
    segmenter = stedm.Segmenter.train(
        data,
        folder / "segmenter",
        arm="real+stain+synthetic",
        synthetic=folder / "synthetic",
        config=segmentation,
        image_px=image_px,
    )
    masks = segmenter.predict(np.stack([sample["image"] for sample in data.split("test")]))
    return images, masks


if __name__ == "__main__":
    painted, predicted = main(Path(sys.argv[1] if sys.argv[1:] else "runs/ten_lines"))
    print(f"painted {painted.shape}, segmented {predicted.shape}, foreground {np.mean(predicted > 0):.2f}")
