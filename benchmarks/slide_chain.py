"""From slides and annotations to segmented slides, by the verbs of the command line, and what must agree on the way.

python benchmarks/slide_chain.py FOLDER [--side-px 8192] [-o RESULT.json]    run again to resume

Phantom slides (tiled JPEG pyramids, 0.5 mpp) with GeoJSON annotations drawn from their true layouts, of the train
slides in part only -> `stedm tile --table-only` -> `stedm run` -> `stedm segment` of the test slides -> GeoJSON.
Checked: no tile is written before or by training; the exported polygons give back the map that was predicted; the IoU
of the map against the truth is that of tile evaluation over the same tissue. Printed as JSON.

The map is better than its tiles by what overlap and blending gain at their borders. A second map without overlap, which
should be the tiles' to the pixel, tells that gain from errors of place, resolution or tissue; what is left between its
IoU and theirs is truth: the layout itself for maps, the simplified outlines of the annotation for tiles.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import yaml

from stedm.cli import main as stedm
from stedm.config import MachineConfig, PhantomConfig
from stedm.data.folder import DatasetFolder
from stedm.evaluation.counts import count
from stedm.io.files import write_json, write_text
from stedm.phantom.slides import PhantomSlide, classes, draw_phantom_slide, write_phantom_slide
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.slides.annotations import read_annotation
from stedm.slides.slide import Slide
from stedm.slides.write_geojson import write_geojson

MPP, SLIDE_MPP = 2.0, 0.5
SLIDE_IMAGE_PX = 256
"""Of a phantom at `SLIDE_MPP`."""
SCALE = int(MPP / SLIDE_MPP)
ANNOTATED_PART = 0.6
"""Upper part of a train slide that is annotated."""
ARM = "real+synthetic"
LEAST_IOU_OF_EXPORT, MOST_DIFFERENCE = 0.99, 0.01
MOST_DIFFERENCE_WITHOUT_OVERLAP = 0.001
PLAIN = "segmented_without_overlap"
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    side_px: int = 8192
    train: int = 4
    unlabeled: int = 4
    val: int = 1
    test: int = 3
    tile_px: int = 64
    diffusion_steps: int = 300
    segmenter_steps: int = 300
    synthetic_images: int = 128
    cache_mb: float = 40.0
    """Less than all tiles need, so that some are read again each time."""


def run_chain(folder: Path, size: Size) -> dict:
    """The whole chain in `folder`; what was measured, with `passed`."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "write slides"):
        slides = write_cohort(folder, size)
    write_settings(folder, size)
    dataset, run, out = folder / "dataset", folder / "run", folder / "segmented"
    with _timed(seconds, "stedm tile"):
        _verb(
            "tile",
            folder / "slides.csv",
            "-o",
            dataset,
            "--config",
            folder / "tiling.yaml",
            "--table-only",
            "--workers",
            1,
        )
    files_before = dataset_files(dataset)
    with _timed(seconds, "stedm run"):
        _verb("run", folder / "run.yaml", "-o", run)
    model = run / "segmenters" / ARM / "seed-0" / "model"
    with _timed(seconds, "stedm segment"):
        _verb("segment", model, folder / "test_slides.csv", "-o", out, "--label-map")
    with _timed(seconds, "stedm segment, overlap 0"):
        _verb("segment", model, folder / "test_slides.csv", "-o", folder / PLAIN, "--label-map", "--set", "overlap=0")
    with _timed(seconds, "compare"):
        compared = [compare(slides[name], name, folder, model) for name in slides if name.startswith("test")]
    result = {
        "size": asdict(size),
        "slides": len(slides),
        "tiles": tile_counts(dataset),
        "tile_images_before_training": sum(name.endswith(".png") for name in files_before),
        "files_added_by_training": sorted(set(dataset_files(dataset)) - set(files_before)),
        **_together(compared, classes(_cohort(size))),
        "stedm_run_iou_mean": json.loads((run / "report" / "summary.json").read_text())["arms"][ARM]["iou_mean"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return {**result, "passed": passed(result)}


def passed(result: dict) -> bool:
    """Whether everything agrees; a class that is nowhere (NaN) shows nothing and doesn't pass."""
    return (
        result["tile_images_before_training"] == 0
        and not result["files_added_by_training"]
        and all(value >= LEAST_IOU_OF_EXPORT for value in result["export_iou"].values())
        and all(value <= MOST_DIFFERENCE for value in result["difference"].values())
        and all(value <= MOST_DIFFERENCE_WITHOUT_OVERLAP for value in result["difference_without_overlap"].values())
    )


# ---- the cohort ---------------------------------------------------------------------------------------------------


def _cohort(size: Size) -> PhantomConfig:
    patients = {split: getattr(size, split) for split in ("train", "unlabeled", "val", "test")}
    return PhantomConfig(image_px=SLIDE_IMAGE_PX, patients=patients)


def write_cohort(folder: Path, size: Size) -> dict[str, PhantomSlide]:
    """Slides, annotations of all but the unlabeled ones, slides.csv and test_slides.csv; the slides by id."""
    config, rows, slides = _cohort(size), [], {}
    for split, n_patients in config.patients.items():
        for number in range(n_patients):
            name = f"{split}{number}"
            slide = draw_phantom_slide(config, split, number, (size.side_px, size.side_px))
            image, annotation = folder / "slides" / f"{name}.svs", folder / "annotations" / f"{name}.geojson"
            if not image.is_file():
                write_phantom_slide(slide, image)
            if split == "unlabeled":
                annotation = ""
            elif not annotation.is_file():
                write_annotation(slide, annotation, ANNOTATED_PART if split == "train" else 1.0)
            rows.append((name, f"patient-{name}", split, image, annotation))
            slides[name] = slide
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "split", "image", "annotation"])
    write_text(folder / "slides.csv", table.to_csv(index=False))
    write_text(folder / "test_slides.csv", table[table["split"] == "test"].to_csv(index=False))
    return slides


def write_annotation(slide: PhantomSlide, path: Path, part: float) -> None:
    """The true layout of the upper `part` of a slide as polygons, simplified below a pixel, as QuPath exports them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = classes(PhantomConfig())
    height = round(part * slide.size_px[1])
    write_geojson(
        path,
        _rows_of_truth(slide, height),
        names,
        downsample=1,
        mpp=slide.mpp,
        tolerance_um=0.75 * slide.mpp,
        skip=[],
    )


def _rows_of_truth(slide: PhantomSlide, height: int) -> Iterator[np.ndarray]:
    for top in range(0, height, _ROWS_AT_ONCE):
        yield slide.truth(0, top, slide.size_px[0], min(_ROWS_AT_ONCE, height - top))


def write_settings(folder: Path, size: Size) -> None:
    """tiling.yaml and run.yaml: coarse small tiles, few steps."""
    tiling = {"name": "phantom slides", "classes": classes(_cohort(size)), "tile_px": size.tile_px, "mpp": MPP}
    # Nearly all tissue, so that the evaluation by tiles sees what that of whole slides sees.
    tiling["min_tissue"] = 0.1
    run = {
        "name": "slide chain",
        "data": {"path": "dataset", "image_px": size.tile_px},
        "machine": {"cache_mb": size.cache_mb, "checkpoint_every_steps": 100},
        "diffusion": {
            "steps": size.diffusion_steps,
            "batch": 8,
            "denoiser": {"channels": [32, 64]},
            "style": {"dim": 64, "sampling": "nearby"},
        },
        "rounds": {"number": 1, "labels": None},
        "synthesis": {"n_images": size.synthetic_images, "sampling": {"steps": 6}},
        "segmentation": {
            "steps": size.segmenter_steps,
            "synthetic_fraction": 0.3,
            "mirror": False,
            "arms": [ARM],
            "seeds": [0],
        },
    }
    for name, values in (("tiling", tiling), ("run", run)):
        write_text(folder / f"{name}.yaml", yaml.safe_dump(values, sort_keys=False))


def dataset_files(dataset: Path) -> list[str]:
    return sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file())


def tile_counts(dataset: Path) -> dict[str, int]:
    """All tiles; those of train with and without a mask, which training shows as style only."""
    table = pd.read_csv(dataset / "metadata.csv", keep_default_na=False)
    train = table["split"] == "train"
    has_mask = table["mask_file_name"] != ""
    counts = {"all": len(table), "train_annotated": sum(train & has_mask), "train_style_only": sum(train & ~has_mask)}
    return {name: int(value) for name, value in counts.items()}


# ---- what must agree ----------------------------------------------------------------------------------------------


def compare(phantom: PhantomSlide, slide_id: str, folder: Path, model: Path) -> dict[str, np.ndarray]:
    """Counts (classes, 4) on one test slide.

    `export`: the polygons against the map that they were made of, on all tissue. `slide`, `plain`, `tiles`: the map,
    the one without overlap, and the network tile by tile, against the truth on the tissue that lies in tiles. `area`:
    pixels of tissue in tiles, of all tissue, and of those in tiles where the map without overlap is not the tiles.
    """
    network, info = load_segmenter(model, machine=MachineConfig())  # in the precision of `stedm segment`
    labels, plain = (tifffile.imread(folder / name / f"{slide_id}.ome.tif", level=0) for name in ("segmented", PLAIN))
    tissue = labels != info.ignore_index
    slide = Slide.open(folder / "slides" / f"{slide_id}.svs")
    n_classes = len(info.classes)
    exported = read_annotation(
        folder / "segmented" / f"{slide_id}.geojson", info.classes, unannotated=info.classes[0], slide_px=slide.size_px
    ).rasterise(0, 0, labels.shape, SCALE)
    tile_map, tile_truth = by_tiles(network, slide_id, folder, labels.shape, info.ignore_index)
    truth = truth_map(phantom)
    both = tissue & (tile_truth != info.ignore_index)
    return {
        "export": count(exported[tissue], labels[tissue], n_classes),
        "slide": count(labels[both], truth[both], n_classes),
        "plain": count(plain[both], truth[both], n_classes),
        "tiles": count(tile_map[both], tile_truth[both], n_classes),
        "area": np.array([both.sum(), tissue.sum(), (plain != tile_map)[both].sum()]),
    }


def by_tiles(network, slide_id: str, folder: Path, shape: tuple[int, int], ignore_index: int):
    """What the network says of each tile of the dataset by itself, and the tiles' masks, as `stedm evaluate` sees them;
    uint8 maps of the slide, `ignore_index` where there is no tile."""
    dataset = DatasetFolder.open(folder / "dataset")
    dataset = dataset.select(dataset.table["slide_id"] == slide_id)
    predicted, truth = np.full(shape, ignore_index, np.uint8), np.full(shape, ignore_index, np.uint8)
    for row, place in enumerate(dataset.table.itertuples()):
        y, x = slice(place.y // SCALE, place.y // SCALE + place.tile_px), slice(place.x // SCALE, None)
        x = slice(x.start, x.start + place.tile_px)
        rows, columns = predicted[y, x].shape  # tiles may hang over the edge
        predicted[y, x] = predict_masks(network, dataset.read_image(row)[None])[0, :rows, :columns]
        truth[y, x] = dataset.read_mask(row)[:rows, :columns]
    return predicted, truth


def truth_map(slide: PhantomSlide) -> np.ndarray:
    """The true layout at the centres of the map's pixels."""
    bands = _rows_of_truth(slide, slide.size_px[1])
    return np.concatenate([band[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE] for band in bands])


def _together(compared: list[dict[str, np.ndarray]], names: list[str]) -> dict:
    """IoU by class over all test slides, their differences, and the smallest and largest of single slides."""
    total = {key: sum(part[key] for part in compared) for key in compared[0]}
    slide, tiles = iou(total["slide"]), iou(total["tiles"])
    difference = [np.abs(iou(part["slide"]) - iou(part["tiles"])) for part in compared]
    return {
        "export_iou": _named(names, iou(total["export"])),
        "export_iou_of_the_worst_slide": _named(names, np.min([iou(part["export"]) for part in compared], axis=0)),
        "slide_iou": _named(names, slide),
        "tile_iou": _named(names, tiles),
        "difference": _named(names, np.abs(slide - tiles)),
        "difference_of_the_worst_slide": _named(names, np.max(difference, axis=0)),
        "difference_without_overlap": _named(names, np.abs(iou(total["plain"]) - tiles)),
        "pixels_compared": int(total["area"][0]),
        "pixels_that_differ_without_overlap": int(total["area"][2]),
        "tissue_in_tiles": round(float(total["area"][0] / total["area"][1]), 4),
    }


def iou(counts: np.ndarray) -> np.ndarray:
    """By class; NaN where it is in neither."""
    tp, fp, fn = counts[:, 0], counts[:, 1], counts[:, 2]
    return tp / np.where(tp + fp + fn > 0, tp + fp + fn, np.nan)


def _named(names: list[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, np.round(values, 5).tolist(), strict=True))


# ---- running ------------------------------------------------------------------------------------------------------


def _verb(*arguments: object) -> None:
    try:
        stedm([str(argument) for argument in arguments])
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(f"stedm {arguments[0]} ended with status {stop.code}") from stop


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="write the result here too")
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    folder, output = given.pop("folder").resolve(), given.pop("output")
    result = run_chain(folder, Size(**given))
    print(json.dumps(result, indent=2))
    if output:
        write_json(output, result)
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
