"""Everything of stedm that reads a file: what it reads, and what it makes of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .workshop import TINY, Workshop

Read = Callable[[Path, Workshop], Any]


@dataclass(frozen=True)
class Reader:
    """A way in. `source` (in the materials) is copied, one of its `files` is damaged, and `read` gives a value.

    ours: stedm wrote the files, so that another value than that of whole files is damage accepted in silence; what
        users make may say something else when it is changed.
    begin: done to the whole copy before it is damaged.
    copies: really copied; others are linked, for readers that write nothing in place.
    batches: of inputs.
    """

    source: str
    files: tuple[str, ...]
    read: Read
    ours: bool = False
    begin: Callable[[Path, Workshop], Any] | None = None
    copies: bool = False
    batches: int = 5


# ---- what users make ----------------------------------------------------------------------------------------------


def _dataset(folder: Path, _: Workshop) -> Any:
    from stedm.data.folder import DatasetFolder

    dataset = DatasetFolder.open(folder)
    return dataset.info, dataset.table


def _check(folder: Path, _: Workshop) -> Any:
    from stedm.data.check import check_dataset

    return check_dataset(folder)


def _image(name: str) -> Read:
    def read(folder: Path, _: Workshop) -> Any:
        from stedm.io.images import image_size, read_image_file

        path = folder / name
        return image_size(folder, path.name), read_image_file(folder, path.name)

    return read


def _mask(folder: Path, _: Workshop) -> Any:
    from stedm.io.images import read_mask_file

    return read_mask_file(folder, "mask.png")


def _run_yaml(folder: Path, _: Workshop) -> Any:
    from stedm.config import load_config, to_yaml

    return to_yaml(load_config(folder / "run.yaml"))


def _tiling_yaml(folder: Path, _: Workshop) -> Any:
    from stedm.config import load_tiling_config

    return load_tiling_config(folder / "tiling.yaml").model_dump_json()


def _slides_csv(folder: Path, _: Workshop) -> Any:
    from stedm.slides.table import read_slides

    return read_slides(folder / "slides.csv")


def _mapping(folder: Path, _: Workshop) -> Any:
    from stedm.slides.class_mapping import read_mapping

    return read_mapping(folder / "mapping.yaml").class_indices(CLASSES, 255)


def _annotation(name: str) -> Read:
    def read(folder: Path, _: Workshop) -> Any:
        from stedm.slides.annotations import read_annotation

        path = folder / name
        annotation = read_annotation(
            path, CLASSES, unannotated="background", image_name="a.svs", ignore_index=255, slide_px=(256, 256)
        )
        return annotation.bounds, annotation.rasterise(10, 10, 64, 3.0)

    return read


def _slide(name: str) -> Read:
    def read(folder: Path, _: Workshop) -> Any:
        from stedm.slides.slide import Slide

        path = folder / name
        slide = Slide.open(path, mpp=0.5 if path.suffix == ".png" else None)
        return slide.size_px, slide.mpp, slide.overview(8.0), slide.read(300, 200, 96, 1.0)

    return read


def _published_weights(folder: Path, _: Workshop) -> Any:
    from stedm.config import SegmentationConfig
    from stedm.segmentation.model import build_segmenter

    weights = folder / "encoder.safetensors"
    config = {**_without_seeds(TINY["segmentation"]), "encoder_weights": weights}
    return build_segmenter(SegmentationConfig(**config), 2)


def _autoencoder(folder: Path, _: Workshop) -> Any:
    from stedm.diffusion.codec import AutoencoderCodec

    return AutoencoderCodec.from_pretrained(folder)


def _checkpoint_of_others(folder: Path, _: Workshop) -> Any:
    from stedm.diffusion.ldm_checkpoint import _read_torch
    from stedm.errors import StedmError

    # A whole first stage of the published kind has 55 million weights: what opens it is given a small one.
    if not (folder / "vq.ckpt").is_file():
        raise StedmError("no such checkpoint")
    return _read_torch(folder / "vq.ckpt")


def _catch(folder: Path, _: Workshop) -> Any:
    from stedm.public.catch import make_catch

    return make_catch(folder / "published", folder / "made")


# ---- what stedm makes ---------------------------------------------------------------------------------------------


def _plan(folder: Path, _: Workshop) -> Any:
    from stedm.synthesis.generate import sampling_of
    from stedm.synthesis.plan import layout_recipe, read_plan

    plan = read_plan(folder / "plan.parquet")
    recipes = [layout_recipe(row) for row in plan.itertuples(index=False)]
    return plan, plan.attrs, recipes, [sampling_of(row).model_dump_json() for _, row in plan.iterrows()]


def _bank(folder: Path, _: Workshop) -> Any:
    from stedm.synthesis.style_bank import StyleBank

    bank = StyleBank.load(folder / "style_bank.parquet")
    return bank.table, bank.vectors, bank.patients, bank.patient_vectors, bank.model_fingerprint


def _model(folder: Path, _: Workshop) -> Any:
    from stedm.diffusion.pipeline import StyleDiffusion

    model = StyleDiffusion.from_pretrained(folder)
    return model.fingerprint, model.style_sampling, model.largest_style_set


def _segmenter(folder: Path, _: Workshop) -> Any:
    from stedm.segmentation.model import load_segmenter

    network, info = load_segmenter(folder)
    return network, info


def _counts(folder: Path, _: Workshop) -> Any:
    from stedm.evaluation.counts import read_counts

    return read_counts(folder / "counts.parquet")


def _compare(folder: Path, workshop: Workshop) -> Any:
    from stedm.evaluation.compare import compare_reports

    return compare_reports([folder, workshop.at("report")], folder.parent / "compared" / "report.html")


def _round(folder: Path, workshop: Workshop) -> Any:
    from stedm.config import load_config
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    return Experiment(load_config(workshop.at("run.yaml")), folder, Reporter(quiet=True)).last_round


def _images_and_masks(dataset: Any) -> Any:
    rows = range(len(dataset))
    return dataset.info, dataset.table, [(dataset.read_image(row), dataset.read_mask(row)) for row in rows]


def _synthetic(folder: Path, workshop: Workshop) -> Any:
    return _images_and_masks(_round(folder, workshop).synthetic())


def _pseudo_labels(folder: Path, workshop: Workshop) -> Any:
    return _images_and_masks(_round(folder, workshop).pseudo_labels())


def _predicted(folder: Path, workshop: Workshop) -> Any:
    return _images_and_masks(_round(folder, workshop).predicted_layouts())


def _agreement(folder: Path, workshop: Workshop) -> Any:
    return _round(folder, workshop).agreement()


def _plan_of_run(folder: Path, workshop: Workshop) -> Any:
    return _round(folder, workshop).plan()


def _bank_of_run(folder: Path, workshop: Workshop) -> Any:
    return _round(folder, workshop).style_bank().vectors


def _counts_of_run(folder: Path, workshop: Workshop) -> Any:
    from stedm.config import load_config
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    return Experiment(load_config(workshop.at("run.yaml")), folder, Reporter(quiet=True)).counts()


def _quality_of_run(folder: Path, workshop: Workshop) -> Any:
    from stedm.config import load_config
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    return Experiment(load_config(workshop.at("run.yaml")), folder, Reporter(quiet=True)).quality()


def _check_run(folder: Path, workshop: Workshop) -> Any:
    """The beginning of `stedm run` in a folder that is there. What it reads decides only whether it goes on."""
    from stedm.config import load_config
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    Experiment(load_config(workshop.at("run.yaml")), folder, Reporter(quiet=True)).check()
    return "goes on"


def _check_run_on_copy(folder: Path, workshop: Workshop) -> Any:
    """The same for a cohort that may have been changed since the run was begun: what it then learns from."""
    from stedm.config import parse_config
    from stedm.data.folder import DatasetFolder
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    values = yaml.safe_load(workshop.at("run.yaml").read_text())
    values["data"]["path"] = str(folder)
    values["segmentation"]["arms"] = ["upper"]  # masks of unlabeled patients are looked at too
    Experiment(parse_config(values, "soak"), folder.parent / "begun", Reporter(quiet=True)).check()
    return _images_and_masks(DatasetFolder.open(folder, allow_unlabeled_masks=True))


def _resume_segmenter(folder: Path, workshop: Workshop) -> Any:
    return _train_segmenter(folder, workshop)


def _train_segmenter(folder: Path, workshop: Workshop, on_progress: Any = None) -> Any:
    from safetensors.torch import load_file

    from stedm.config import MachineConfig, SegmentationConfig
    from stedm.data.folder import DatasetFolder
    from stedm.segmentation.train import train_segmenter

    cohort = DatasetFolder.open(workshop.at("cohort"))
    model = train_segmenter(
        SegmentationConfig(**TINY["segmentation"]),
        cohort.annotated,
        folder,
        arm="ssl",
        image_px=32,
        unlabeled=cohort.split("unlabeled"),
        machine=MachineConfig(checkpoint_every_steps=2),
        on_progress=on_progress,
    )
    return load_file(model / "model.safetensors")


def _train_diffusion(folder: Path, workshop: Workshop, on_progress: Any = None) -> Any:
    from stedm.config import DiffusionConfig, MachineConfig
    from stedm.data.folder import DatasetFolder
    from stedm.diffusion.train import train_diffusion

    cohort = DatasetFolder.open(workshop.at("cohort"))
    machine = MachineConfig(checkpoint_every_steps=2)
    sets = cohort.annotated, cohort.split("unlabeled")
    config = DiffusionConfig(**TINY["diffusion"])
    train_diffusion(config, *sets, folder, machine=machine, image_px=32, seed=0, on_progress=on_progress)
    return _model(folder / "model", workshop)


def _resume_diffusion(folder: Path, workshop: Workshop) -> Any:
    return _train_diffusion(folder, workshop)


def _latents(folder: Path, workshop: Workshop) -> Any:
    import torch

    from stedm.diffusion.codec import AutoencoderCodec
    from stedm.diffusion.latent_cache import LatentCache

    codec = AutoencoderCodec.from_pretrained(workshop.at("autoencoder"))
    cache = LatentCache(folder, codec, ["a", "b", "c"], 32)
    images = torch.linspace(-1, 1, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32)
    rows, symmetries = torch.arange(3), torch.zeros(3, dtype=torch.long)
    # Encoded again alone, not among others, a latent differs in the last bits of float16.
    return torch.allclose(cache(images, rows, symmetries, noise=None), codec.encode(images), atol=4e-3)


def _rows_of_map(folder: Path, _: Workshop) -> Any:
    from stedm.segmentation.row_checkpoint import RowCheckpoint

    return np.concatenate(list(RowCheckpoint(folder, "key").passing(lambda row: iter(BANDS[row:]))))


def _go_on_tiling(folder: Path, workshop: Workshop) -> Any:
    from stedm.config import load_tiling_config
    from stedm.data.folder import DatasetFolder
    from stedm.data.tiles import tile_slides

    (folder / "metadata.csv").unlink(missing_ok=True)
    tile_slides(workshop.at("slides/slides.csv"), folder, load_tiling_config(workshop.at("tiling.yaml")))
    return DatasetFolder.open(folder).table


def _go_on_drawing(folder: Path, workshop: Workshop) -> Any:
    from stedm.diffusion.pipeline import StyleDiffusion
    from stedm.synthesis.generate import synthesize
    from stedm.synthesis.plan import read_plan

    (folder / "metadata.csv").unlink(missing_ok=True)
    run = workshop.at("run")
    synthesize(StyleDiffusion.from_pretrained(run / "model"), read_plan(run / "plan.parquet"), folder)
    return (folder / "metadata.csv").read_bytes()


def _tiles_of_slides(folder: Path, _: Workshop) -> Any:
    from stedm.data.folder import DatasetFolder

    dataset = DatasetFolder.open(folder)
    return dataset.info, dataset.table, dataset.read_image(0), dataset.read_mask(0)


ANY = ("**/*",)
READERS: dict[str, Reader] = {
    # what users make
    "metadata.csv": Reader("cohort", ("metadata.csv",), _dataset),
    "metadata.parquet": Reader("parquet", ("metadata.parquet",), _dataset),
    "dataset.yaml": Reader("cohort", ("dataset.yaml",), _dataset),
    "dataset (check)": Reader("cohort", ANY, _check),
    "image, PNG": Reader("pictures/png", ANY, _image("a.png")),
    "image, JPEG": Reader("pictures/jpeg", ANY, _image("a.jpg")),
    "image, TIFF": Reader("pictures/tiff", ANY, _image("a.tiff")),
    "mask": Reader("pictures/mask", ANY, _mask),
    "run configuration": Reader("run.yaml", ANY, _run_yaml, batches=6),
    "tiling configuration": Reader("tiling.yaml", ANY, _tiling_yaml),
    "slides.csv": Reader("slides/slides.csv", ANY, _slides_csv),
    "class mapping": Reader("annotations/mapping", ANY, _mapping),
    "GeoJSON": Reader("annotations/geojson", ANY, _annotation("a.geojson"), batches=6),
    "COCO": Reader("annotations/coco", ANY, _annotation("a.json"), batches=6),
    "label image, PNG": Reader("annotations/png", ANY, _annotation("a.png")),
    "label image, TIFF": Reader("annotations/tiff", ANY, _annotation("a.tif")),
    "slide, SVS": Reader("pictures/svs", ANY, _slide("a.svs")),
    "slide, OME-TIFF": Reader("pictures/ome", ANY, _slide("a.ome.tif")),
    "slide, PNG": Reader("pictures/slide", ANY, _slide("a.png")),
    "CATCH, published files": Reader("catch", ("published/*.json", "published/*.csv"), _catch),
    "encoder weights": Reader("pictures/encoder", ANY, _published_weights),
    "autoencoder of diffusers": Reader("autoencoder", ANY, _autoencoder),
    "checkpoint of latent diffusion": Reader("pictures/ckpt", ANY, _checkpoint_of_others),
    "tiles read from slides": Reader("table", ("*.csv", "*.yaml"), _tiles_of_slides, batches=3),
    # what stedm makes
    "plan": Reader("plan.parquet", ANY, _plan, ours=True),
    "style bank": Reader("run/style_bank.parquet", ANY, _bank, ours=True),
    "model": Reader("run/model", ANY, _model, ours=True, batches=8),
    "model with autoencoder": Reader("latents/model", ANY, _model, ours=True, batches=6),
    "segmenter": Reader("run/segmenters/real/seed-0/model", ANY, _segmenter, ours=True, batches=8),
    "counts": Reader("run/report/counts.parquet", ANY, _counts, ours=True),
    "report (compare)": Reader("run/report", ("summary.json", "counts.parquet"), _compare, ours=True, batches=2),
    "run: configuration, provenance": Reader("run", ("*.yaml", "*.json"), _check_run, ours=True, batches=4),
    "run: plan": Reader("run", ("plan.parquet",), _plan_of_run, ours=True, batches=3),
    "run: style bank": Reader("run", ("style_bank.parquet",), _bank_of_run, ours=True, batches=3),
    "run: synthetic images": Reader("run", ("synthetic/**/*",), _synthetic, ours=True),
    "run: pseudo-labels": Reader("run", ("pseudo_labels/**/*",), _pseudo_labels, ours=True),
    "run: predicted layouts": Reader("run", ("predicted_layouts/**/*",), _predicted, ours=True),
    "run: agreement": Reader("run", ("agreement.csv",), _agreement, ours=True),
    "run: quality": Reader("run", ("quality.json",), _quality_of_run, ours=True),
    "run: counts": Reader("run", ("segmenters/*/*/counts-*",), _counts_of_run, ours=True, batches=3),
    "run: data since its beginning": Reader(
        "cohort", ANY, _check_run_on_copy, ours=True, begin=_check_run_on_copy, copies=True, batches=4
    ),
    "checkpoints, diffusion": Reader("stopped/diffusion", ANY, _resume_diffusion, ours=True, copies=True, batches=4),
    "checkpoints, segmenter": Reader("stopped/segmenter", ANY, _resume_segmenter, ours=True, copies=True, batches=4),
    "latents": Reader("stopped/latents", ANY, _latents, ours=True, copies=True),
    "rows of a label map": Reader("stopped/rows", ANY, _rows_of_map, ours=True),
    "tiling, half done": Reader("tiles", ("tiling.yaml", "**/*.parquet"), _go_on_tiling, ours=True, batches=3),
    "drawing, half done": Reader("run/synthetic", ("synthesis.json",), _go_on_drawing, ours=True, batches=3),
}

# ---- materials ----------------------------------------------------------------------------------------------------

CLASSES = ["background", "tumour", "stroma"]
BANDS = [np.full((16, 64), number, np.uint8) for number in range(6)]
"""Rows of tiles of a label map."""
_SQUARE = [[10, 20], [150, 20], [150, 160], [10, 160], [10, 20]]
_HOLE = [[20, 30], [20, 60], [60, 60], [60, 30], [20, 30]]


def _feature(rings: list, name: str, kind: str = "Polygon") -> dict:
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def make_materials(workshop: Workshop) -> None:
    """What only readers need, besides the materials of all."""
    at = workshop.at
    for name in ("annotations", "pictures", "parquet", "catch", "stopped"):
        at(name).mkdir()
    _annotations(at("annotations"))
    _pictures(workshop, at("pictures"))
    _published(at("catch/published"))
    _parquet(workshop)
    _stopped(workshop)


def _file(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _annotations(folder: Path) -> None:
    import tifffile
    from PIL import Image

    island = [[[p[0] + 80, p[1] + 60] for p in _HOLE]]
    features = [_feature([_SQUARE, _HOLE], "tumour"), _feature([island], "stroma", "MultiPolygon")]
    _file(folder / "geojson/a.geojson", json.dumps({"type": "FeatureCollection", "features": features}))
    flat = [float(value) for point in _SQUARE[:-1] for value in point]
    box = {"id": 1, "image_id": 0, "category_id": 7, "segmentation": [flat], "bbox": [10, 20, 140, 140], "area": 19600}
    rle = {"size": [256, 256], "counts": [0, 300, 65236]}
    coco = {
        "categories": [{"id": 7, "name": "tumour"}, {"id": 3, "name": "stroma"}],
        "images": [{"id": i, "file_name": f"{name}.svs", "width": 256, "height": 256} for i, name in enumerate("ab")],
        "annotations": [box, {**box, "id": 2, "image_id": 1, "segmentation": rle, "iscrowd": 1}],
    }
    _file(folder / "coco/a.json", json.dumps(coco))
    labels = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3, np.ones((32, 32), np.uint8))
    for name in ("png", "tiff"):
        (folder / name).mkdir()
    Image.fromarray(labels).save(folder / "png/a.png")
    tifffile.imwrite(folder / "tiff/a.tif", labels, tile=(64, 64), compression="zlib")
    mapping = {"mapping": {"Tumor": "tumour", "Stroma": "stroma", "Necrosis": "ignore"}, "unannotated": "background"}
    _file(folder / "mapping/mapping.yaml", yaml.safe_dump({**mapping, "order": ["stroma", "tumour"]}))


def _pictures(workshop: Workshop, folder: Path) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from stedm.config import SegmentationConfig
    from stedm.segmentation.model import build_segmenter

    image = Image.open(next(workshop.at("cohort/images").glob("*.png"))).convert("RGB")
    for name, options in {"png": {}, "jpeg": {"quality": 90}, "tiff": {"compression": "tiff_lzw"}}.items():
        (folder / name).mkdir()
        image.save(folder / name / f"a.{'jpg' if name == 'jpeg' else name}", **options)
    _file(folder / "mask/mask.png", next(workshop.at("cohort/masks").glob("*.png")).read_bytes())
    svs, ome = (next(workshop.at(name).glob("slides/*")) for name in ("slides", "ome"))
    _file(folder / "svs/a.svs", svs.read_bytes())
    _file(folder / "ome/a.ome.tif", ome.read_bytes())
    (folder / "slide").mkdir()
    image.resize((700, 500)).save(folder / "slide/a.png")
    (folder / "encoder").mkdir()
    encoder = build_segmenter(SegmentationConfig(**_without_seeds(TINY["segmentation"])), 2).encoder
    weights = {name.removeprefix("model."): value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / "encoder/encoder.safetensors")
    (folder / "ckpt").mkdir()
    torch.save({"state_dict": {"first_stage_model.encoder.x": torch.arange(64.0)}}, folder / "ckpt/vq.ckpt")


def _without_seeds(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("arms", "seeds")}


def _published(folder: Path) -> None:
    """A miniature of CATCH with its names, separators and fields."""
    from stedm.public.catch import CATCH_TISSUES

    names = [*CATCH_TISSUES, "Melanoma", "Plasmacytoma", "Mast Cell Tumor", "PNST", "SCC", "Trichoblastoma"]
    names += ["Histiocytoma"]
    split = {"Melanoma_01_1.svs": "train", "Melanoma_02_1.svs": "val", "MCT_01_1.svs": "train", "SCC_04_1.svs": "test"}
    kinds = {"Melanoma": "Melanoma", "MCT": "Mast Cell Tumor", "SCC": "SCC"}
    annotations = []
    for number, name in enumerate(split, start=1):
        _file(folder / name.split("_")[0] / name, b"II*\0")
        category = names.index(kinds[name.split("_")[0]]) + 1
        flat = [10, 10, 90, 10, 90, 60, 10, 60]
        annotations.append({"id": number, "image_id": number, "category_id": category, "segmentation": flat})
        annotations[-1] |= {"iscrowd": 0, "bbox": [10, 10, 80, 50], "area": 4000}
    images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i, name in enumerate(split, 1)]
    categories = [
        {"id": i, "name": name, "supercategory": "Tissue" if name in CATCH_TISSUES else "Tumor"}
        for i, name in enumerate(names, start=1)
    ]
    coco = {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}
    _file(folder / "CATCH.json", json.dumps(coco))
    rows = "".join(f"{name};{to};ScanScope v1\n" for name, to in split.items())
    _file(folder / "datasets.csv", "Slide;Dataset;Scanner\n" + rows)


def _parquet(workshop: Workshop) -> None:
    from stedm.data.folder import DatasetFolder

    DatasetFolder.open(workshop.at("cohort")).table.to_parquet(workshop.at("parquet/metadata.parquet"), index=False)
    _file(workshop.at("parquet/dataset.yaml"), workshop.at("cohort/dataset.yaml").read_bytes())


def _stopped(workshop: Workshop) -> None:
    """Folders of work that was interrupted: two checkpoints each, cached latents, rows of a label map."""
    from stedm.segmentation import row_checkpoint

    at = workshop.at

    def stop(step: int, *_: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt

    for name, train in (("diffusion", _train_diffusion), ("segmenter", _train_segmenter)):
        try:
            train(at(f"stopped/{name}"), workshop, stop)
        except KeyboardInterrupt:
            continue
        raise RuntimeError(f"{name}: was not interrupted")
    _latents(at("stopped/latents"), workshop)
    at("stopped/rows").mkdir()
    row_checkpoint.WRITE_AFTER_PX = 3 * BANDS[0].size
    for number, _ in enumerate(
        row_checkpoint.RowCheckpoint(at("stopped/rows"), "key").passing(lambda row: iter(BANDS))
    ):
        if number == 4:
            break
