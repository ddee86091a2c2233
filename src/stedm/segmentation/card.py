"""The card of a segmenter (stedm.data.card)."""

from stedm.data.card import SCORES, listed, model_card, section_to_fill, seen_table, source_in
from stedm.segmentation.info import OWN_NETWORK, SegmenterInfo


def segmenter_card(info: SegmenterInfo) -> str:
    """README.md of a segmenter's folder: what it is, what it has learned from, what it is for; no name of a patient."""
    data = source_in(info.provenance)
    named = data["name"] or "images of unnamed data"
    network = info.architecture if info.architecture == OWN_NETWORK else f"{info.architecture}, {info.encoder}"
    resolution = "unknown" if info.mpp is None else f"{info.mpp:g} microns per pixel"
    settings = {
        "network": network,
        "side of images": f"{info.image_px} px",
        "resolution": resolution,
        "predicts from mirror images too": "yes" if info.mirror else "no",
    }
    sections = {
        "Use": _use(info),
        "What it has learned from": seen_table(info.provenance, settings),
        "Intended use": (
            "To segment images of the tissue, stains and scanners it was trained on, at their resolution, for "
            "research. Not for diagnosis. Somebody who knows the tissue looks at what it says before it is counted."
        ),
        "Limits": (
            "It knows the classes above and calls every pixel one of them, whatever is in the image: folds, ink, "
            "glass. Patients who look like none it has seen are segmented worse than the mean says; those in the "
            "report of its run show by how much. Where the resolution is unknown, images are reduced as the training "
            "images were."
        ),
        "Scores": section_to_fill(
            SCORES, "Not scored yet. `stedm evaluate` scores it on a dataset, patient by patient."
        ),
    }
    about = (
        f"Segments images into {listed(info.classes)}. Trained on {named} with stedm, an independent implementation of "
        "[Öttl et al., ECCV 2024](https://arxiv.org/abs/2403.14429)."
    )
    tags = ["semantic-segmentation"]
    return model_card(f"Segmenter of {named}", about, sections, data, pipeline_tag="image-segmentation", tags=tags)


def _use(info: SegmenterInfo) -> str:
    if info.architecture == OWN_NETWORK:
        make = ", network=make"
        also = "\n`make` is the function that makes the network; it is not in this folder."
    else:
        make, also = (
            "",
            "\n`stedm segment FOLDER IMAGES|SLIDE -o OUT`; `stedm export FOLDER -o FILE.onnx` for other programs.",
        )
    return (
        "```python\nimport stedm\n\n"
        f'segmenter = stedm.Segmenter.from_pretrained("this folder"{make})\n'
        "masks = segmenter.predict(images)  # uint8 RGB (n, H, W, 3) -> class indices (n, H, W)\n```" + also
    )
