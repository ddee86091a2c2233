"""The card of a diffusion model (stedm.data.card)."""

from collections.abc import Mapping, Sequence
from typing import Any

from stedm.data.card import NOT_MEASURED, QUALITY, listed, model_card, section_to_fill, seen_table, source_in


def diffusion_card(
    *, classes: Sequence[str], image_px: int, objective: str, style_sampling: str, provenance: Mapping[str, Any]
) -> str:
    """README.md of a model folder: what it is, what it has learned from, what it is for; no name of a patient."""
    data = source_in(provenance)
    named = data["name"] or "images of unnamed data"
    sections = {
        "Use": (
            "```python\nimport stedm\n\n"
            'model = stedm.StyleDiffusion.from_pretrained("this folder")\n'
            "images = model.generate(layouts, style=images_of_one_patient, seed=0)  # uint8 RGB (n, H, W, 3)\n```\n"
            f"`layouts`: class indices, integers (n, H, W): {listed(classes)}; 255 = unknown here. It was trained on "
            f"squares of {image_px} px. `style`: uint8 RGB images of any size."
        ),
        "What it has learned from": seen_table(
            provenance, {"objective": objective, "style sampling": style_sampling, "side": f"{image_px} px"}
        ),
        "Whose styles": _styles(provenance),
        "Intended use": (
            "To paint images with known layouts, from which segmentation networks learn; to look at what a network has "
            "learned of a cohort. Not for diagnosis, not as evidence: what it paints never was in a patient."
        ),
        "Limits": (
            "It knows the stains, scanners and tissues of its training images, paints at their resolution, and follows "
            "a layout or a style less the farther it lies from them. Whether painted images help a segmentation "
            "network depends on the data: compare patient by patient (`stedm run` does). It may paint images that "
            "resemble training images closely."
        ),
        "Quality and copies": section_to_fill(QUALITY, NOT_MEASURED),
    }
    about = (
        f"A diffusion model that paints layouts ({listed(classes)}) in the style of given images, trained on {named} "
        "with stedm, an independent implementation of [Öttl et al., ECCV 2024](https://arxiv.org/abs/2403.14429)."
    )
    title = f"Style-extracting diffusion model of {named}"
    return model_card(title, about, sections, data, pipeline_tag="image-to-image", tags=["diffusion"])


def _styles(provenance: Mapping[str, Any]) -> str:
    images = provenance.get("images", {})
    if not images:
        return "Not noted."
    n_patients = sum(count["patients"] for name, count in images.items() if name in ("annotated", "unannotated"))
    n_images = sum(count["images"] for name, count in images.items())
    return (
        f"It was shown styles of {n_patients} patients, from {n_images} images. No id of a patient and no name of an "
        "image is in this folder."
    )
