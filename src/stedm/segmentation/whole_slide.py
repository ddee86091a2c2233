"""Segmentation of whole slides: from tiles of tissue to annotations for QuPath, areas, and a label map.

Tiles overlap and their probabilities are blended (see stedm.segmentation.blending). Everything is streamed from the top
of the slide to its bottom: threads read the next tiles while the network works, and rows of the map are written as soon
as no later tile touches them. Finished rows of large slides are kept on disk until the slide is done, so that a killed
process loses minutes, not hours.
"""

import contextlib
import hashlib
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from torch import nn

from stedm.config import MachineConfig, SlideSegmentationConfig, TissueConfig, checked
from stedm.config.base import read_values
from stedm.errors import DiskError, StedmError
from stedm.io.artefacts import Column, read_csv_table
from stedm.io.files import fingerprint, replacing, sweep, write_text
from stedm.io.manifest import verify_sum, write_sum
from stedm.io.ownership import SEGMENTED, check_outputs
from stedm.io.tables import write_csv
from stedm.progress import Reporter
from stedm.segmentation.blending import Blender, TileGrid
from stedm.segmentation.model import Network, SegmenterInfo, load_segmenter
from stedm.segmentation.predict import predict_probabilities
from stedm.segmentation.row_checkpoint import RowCheckpoint
from stedm.segmentation.slide_sources import SlideSource
from stedm.slides.class_mapping import QUPATH_IGNORE
from stedm.slides.slide import Slide
from stedm.slides.tissue import TissueMask
from stedm.slides.write_geojson import write_geojson
from stedm.slides.write_label_map import LabelMapWriter, tifffile
from stedm.workers.pool import Pool, Work, check_shared

_AREAS = "class,pixels,area_mm2,fraction,mpp"
"""In the header of every table of areas."""
_BAND_PX = 1 << 22
"""Pixels of the map that become polygons at once."""
_TISSUE_PX = 1 << 22
"""Pixels at which tissue is looked for, at most: on slides of more than 16 mm squared a little coarser than asked."""


@dataclass(frozen=True)
class SegmentedSlides:
    """What `segment_slides` did."""

    written: list[Path]
    """GeoJSON files."""
    failures: list[str]
    """A line for each slide that could not be read."""
    mpp: float
    """Microns per pixel at which the network saw them."""
    complete: bool = True
    """False while other shards have work left; the lists are then of what is there."""


def load_slide_config(overrides: list[str] | None = None) -> SlideSegmentationConfig:
    """The defaults with `a.b=c` overrides; `StedmError` with one line per problem."""
    return checked(SlideSegmentationConfig, read_values(None, overrides), "--set")


# ---- slides to files ----------------------------------------------------------------------------------------------


def segment_slides(
    model_folder: str | Path,
    slides: Sequence[SlideSource],
    output: str | Path,
    config: SlideSegmentationConfig | None = None,
    reporter: Reporter | None = None,
    *,
    pool: Pool | None = None,
    shard: tuple[int, int] = (0, 1),
    network: Network | None = None,
    machine: MachineConfig | None = None,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
) -> SegmentedSlides:
    """Segment slides with a saved segmenter; call it again to go on.

    `output` is a .geojson for one slide, else a folder that gets `SLIDE.geojson` for each. Beside it `.csv` (areas) and
    with `label_map` `.ome.tif`; a folder also gets `areas.csv` of all slides. A slide that can't be read is a line in
    `failures`, the others are done. In a folder slides are skipped that were done with this model and these settings.

    Args:
        pool: who segments the slides (see stedm.workers.pool), a slide at a time; None = this process.
        shard: (i, n) does only the slides i, i + n, i + 2 n, ...; shards may run at the same time, and the one that is
            done last writes `areas.csv`.
        network: what makes the network, where it is one's own; pools send it to their processes by pickle.
        machine: what it runs on; None = the defaults.
        inputs: what else was read, such as a slides.csv.
        overwrite: replace files that are there and that stedm did not write.

    Raises `StedmError` for anything wrong with model or configuration, and where a file would be lost.
    """
    is_here, machine = pool is None or pool.is_here, machine or MachineConfig()
    loaded, info = load_segmenter(model_folder, network, machine if is_here else None)
    config, reporter = _completed(config or SlideSegmentationConfig(), info, model_folder), reporter or Reporter()
    sweep(output)
    targets = _targets(slides, Path(output), config, Path(model_folder))
    mine = targets[shard[0] :: shard[1]]
    marks = {path: mark for target in mine if not target.is_done(config) for path, mark in target.marks(config).items()}
    if targets and targets[0].mark is not None:
        marks[Path(output) / "areas.csv"] = _AREAS
    check_outputs(marks, [*(slide.path for slide in slides), *inputs], overwrite=overwrite)
    for target in mine:
        target.failed.unlink(missing_ok=True)
    missing = [target for target in mine if not target.is_done(config)]
    if pool is None or is_here:
        work = _Segmentation(loaded, info, config, reporter)
        outcomes = enumerate(map(work, missing))
    else:
        job = _SegmentJob(Path(model_folder).resolve(), config, machine, network)
        outcomes = _by_pool(pool, job, missing, reporter)
    failures = {missing[number]: line for number, line in outcomes if line}
    if shard[1] > 1:
        for target, line in failures.items():
            write_text(target.failed, line + "\n")
        failures = {target: target.failed.read_text("utf-8").strip() for target in targets if target.failed.is_file()}
        pending = [target for target in targets if target not in failures and not target.is_done(config)]
    else:
        pending = []
    written = [target for target in targets if target not in failures and target not in pending]
    if written and not pending and written[0].mark is not None:
        write_csv(Path(output) / "areas.csv", pd.concat(_read_areas(target.mark) for target in written))
    failed = [failures[target] for target in targets if target in failures]
    return SegmentedSlides([target.path for target in written], failed, config.mpp, not pending)


@dataclass(frozen=True)
class _Target:
    """A slide and where it goes."""

    source: SlideSource
    path: Path
    key: str
    """Names everything that decides the result."""
    mark: Path | None
    """Its areas, written last; None for a single file, which is always made anew."""

    @property
    def failed(self) -> Path:
        """Says to other shards why there is no result."""
        return (self.mark or self.path.with_name(f".{self.path.name}")).with_suffix(".failed")

    def marks(self, config: SlideSegmentationConfig) -> dict[Path, str]:
        """What is written, and by what each file is known to be written here."""
        marks = {self.path: SEGMENTED, self.path.with_suffix(".csv"): _AREAS}
        return marks | ({self.path.with_suffix(".ome.tif"): SEGMENTED} if config.label_map else {})

    def is_done(self, config: SlideSegmentationConfig) -> bool:
        files = [self.path, *([self.path.with_suffix(".ome.tif")] if config.label_map else [])]
        return self.mark is not None and self.mark.is_file() and all(file.is_file() for file in files)


def _targets(
    slides: Sequence[SlideSource], output: Path, config: SlideSegmentationConfig, model: Path
) -> list[_Target]:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        digest.update((model / name).read_bytes())
    targets = []
    for source in slides:
        path = source.path.resolve()
        file = [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else []
        key = fingerprint([source.name, str(path), source.mpp, file, config.model_dump(), digest.hexdigest()])
        source = SlideSource(source.name, source.path.absolute(), source.mpp)
        if output.suffix.lower() == ".geojson":
            targets.append(_Target(source, output.absolute(), key, None))
        else:
            mark = output.absolute() / ".segment" / f"{source.name}-{key}.csv"
            targets.append(_Target(source, output.absolute() / f"{source.name}.geojson", key, mark))
    return targets


@dataclass(frozen=True)
class _Segmentation:
    """Does one slide after the other."""

    network: nn.Module
    info: SegmenterInfo
    config: SlideSegmentationConfig
    reporter: Reporter

    def __call__(self, target: _Target) -> str | None:
        """The line to print where the slide can't be read."""
        try:
            slide = Slide.open(target.source.path, target.source.mpp)
            with self.reporter.stage(f"segment {target.source.name}") as tick:
                table = segment_slide(self.network, self.info, slide, target.path, self.config, tick, key=target.key)
        except DiskError:  # not the slide's fault: it isn't given up
            raise
        except StedmError as error:
            return str(error)
        table.insert(0, "slide_id", target.source.name)
        write_csv(target.path.with_suffix(".csv"), table)
        if target.mark is not None:
            _write_sealed(target.mark, table)
        return None


@dataclass(frozen=True)
class _SegmentJob:
    """Segmentation by worker processes: a piece is a `_Target`."""

    model: Path
    config: SlideSegmentationConfig
    machine: MachineConfig
    network: Network | None = None
    uses_gpu: ClassVar[bool] = True

    def open(self) -> Work:
        check_shared(self.model)
        loaded, info = load_segmenter(self.model, self.network, self.machine)
        return _Segmentation(loaded, info, self.config, Reporter(quiet=True))


def _by_pool(
    pool: Pool, job: _SegmentJob, missing: Sequence[_Target], reporter: Reporter
) -> Iterator[tuple[int, str | None]]:
    with reporter.stage("segment slides") as tick:
        for done, outcome in enumerate(pool.run(job, missing), start=1):
            yield outcome
            tick(done, len(missing))


def segment_slide(
    network: nn.Module,
    info: SegmenterInfo,
    slide: Slide,
    path: str | Path,
    config: SlideSegmentationConfig,
    tick: Callable[..., None] = lambda *_: None,
    *,
    key: str | None = None,
) -> pd.DataFrame:
    """Write the GeoJSON of a slide, and with `config.label_map` its label map beside it.

    With a `key`, which names all that decides the result, finished rows of the map wait in a hidden folder beside the
    GeoJSON until it is written; a call with the same key goes on below them, to the same result.

    Returns a row a class: class, pixels (of the map), area_mm2, fraction (of the tissue), mpp. Glass is in no class.
    """
    path, config = Path(path), _completed(config, info, "the segmenter")
    mpp = config.mpp
    skip = [*(info.classes[:1] if config.skip is None else config.skip), QUPATH_IGNORE]
    with contextlib.ExitStack() as stack:
        if key is None:
            bands = map_bands(network, info, slide, config, tick)
        else:
            finished = RowCheckpoint(path.with_name(f".{path.stem}.rows"), key)
            stack.enter_context(finished)
            bands = finished.passing(lambda first_row: map_bands(network, info, slide, config, tick, first_row))
        if config.label_map:
            tifffile()  # say what is missing before the work
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            labels = LabelMapWriter(file, _map_size(slide, mpp)[0])
            bands = labels.passing(bands)
        counts = write_geojson(
            path,
            _of_height(bands, max(1, _BAND_PX // _map_size(slide, mpp)[0])),
            info.classes,
            downsample=mpp / slide.mpp,
            mpp=mpp,
            tolerance_um=0.75 * mpp if config.tolerance_um is None else config.tolerance_um,
            skip=skip,
            ignore_index=info.ignore_index,
            smallest_um2=config.smallest_um2,
        )
        if config.label_map:
            legend = ", ".join(f"{index} {name}" for index, name in enumerate(info.classes))
            labels.write(path.with_suffix(".ome.tif"), mpp, f"{legend}, {info.ignore_index} no tissue")
    return _areas(counts, info.classes, mpp)


def map_bands(
    network: nn.Module,
    info: SegmenterInfo,
    slide: Slide,
    config: SlideSegmentationConfig,
    tick: Callable[..., None] = lambda *_: None,
    first_row: int = 0,
) -> Iterator[np.ndarray]:
    """The label map of a slide at `config.mpp` from top to bottom, uint8 `(rows, ceil(width))` of class indices.

    A band for each row of tiles, from `first_row` on: the same bands to the bit wherever one begins.
    `ignore_index` where there is no tissue; tiles without tissue are not read. Memory is that of a row of tiles of
    classes, of the probabilities in the strip that the next row overlaps, and of a few batches of tiles.
    """
    config = _completed(config, info, "the segmenter")
    tissue = TissueMask.of(slide, _tissue_config(slide, config.tissue))
    width, height = _map_size(slide, config.mpp)
    grid = TileGrid(width, height, config.tile_px, round(config.overlap * config.tile_px))
    scale = config.mpp / slide.mpp
    corners = grid.corners()
    seen = (tissue.fractions(*(corners.T * scale), grid.tile_px * scale) > 0).reshape(grid.rows, grid.columns)
    corners = (corners * scale).reshape(*seen.shape, 2)
    above = max(first_row - 1, 0)
    places = [row[is_seen] for row, is_seen in zip(corners[above:], seen[above:], strict=True)]
    before, total = seen[:above].sum(), seen.sum()
    predicted = _predicted(network, slide, places, config, lambda done: tick(before + done, total))
    top = first_row * grid.stride_px
    with contextlib.closing(predicted):
        tiles = (next(predicted) if see else None for see in seen[above:].ravel())
        for band in Blender(grid, len(info.classes)).bands(tiles, first_row):
            band[~_tissue_rows(tissue, scale, top, band.shape)] = info.ignore_index
            top += len(band)
            yield band


def _predicted(
    network: nn.Module,
    slide: Slide,
    rows: Sequence[np.ndarray],
    config: SlideSegmentationConfig,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """Probabilities float32 `(n_classes, tile_px, tile_px)` at each place (x, y of level 0) of each row, in order.

    No batch goes over the end of a row, so that a row's probabilities depend on nothing but the row.
    """

    def read(x: float, y: float) -> np.ndarray:
        return slide.read(x, y, config.tile_px, config.mpp)

    network.eval()
    batches = [row[start : start + config.batch] for row in rows for start in range(0, len(row), config.batch)]
    waiting: deque[list[Future]] = deque()
    done = 0
    with ThreadPoolExecutor(config.workers) as readers:
        try:
            for number in range(len(batches)):
                # The readers work on the next batch, and no further ahead: that bounds the memory.
                for batch in batches[number + len(waiting) : number + 2]:
                    waiting.append([readers.submit(read, *place) for place in batch.tolist()])
                tiles = [future.result() for future in waiting[0]]
                waiting.popleft()
                yield from predict_probabilities(network, np.stack(tiles))
                tick(done := done + len(tiles))
        finally:
            for future in (future for futures in waiting for future in futures):
                future.cancel()


def _tissue_rows(tissue: TissueMask, scale: float, top: int, shape: tuple[int, int]) -> np.ndarray:
    """Whether the centres of the map's pixels are tissue, bool `shape`, from row `top` on."""
    step = scale / tissue.downsample
    rows = ((top + np.arange(shape[0]) + 0.5) * step).astype(np.intp).clip(0, tissue.mask.shape[0] - 1)
    columns = ((np.arange(shape[1]) + 0.5) * step).astype(np.intp).clip(0, tissue.mask.shape[1] - 1)
    return tissue.mask[np.ix_(rows, columns)]


def _of_height(bands: Iterable[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """The same rows in bands of `height`: few, because outlines can't be simplified where bands meet."""
    waiting: list[np.ndarray] = []
    n_rows = 0
    for band in bands:
        while n_rows + len(band) >= height:
            yield np.concatenate([*waiting, band[: height - n_rows]])
            band, waiting, n_rows = band[height - n_rows :], [], 0
        if len(band):
            waiting.append(band)
            n_rows += len(band)
    if waiting:
        yield np.concatenate(waiting)


def _completed(config: SlideSegmentationConfig, info: SegmenterInfo, model: str | Path) -> SlideSegmentationConfig:
    """With `mpp` and `tile_px` of the model where they are not given."""
    mpp = info.mpp if config.mpp is None else config.mpp
    if mpp is None:
        raise StedmError(
            f"{model}: the model doesn't know the resolution of its training images; give the microns per pixel at "
            "which it sees slides (--mpp; for a PNG, JPEG or BMP, whose own that is, --set mpp=...)"
        )
    if strangers := sorted(set(config.skip or []) - set(info.classes)):
        raise StedmError(f"skip: {', '.join(strangers)} is no class of {model}; it has {', '.join(info.classes)}")
    return config.model_copy(update={"mpp": mpp, "tile_px": config.tile_px or info.image_px})


def _tissue_config(slide: Slide, config: TissueConfig) -> TissueConfig:
    width, height = slide.size_px
    coarsest = slide.mpp * math.sqrt(width * height / _TISSUE_PX)
    return config.model_copy(update={"mpp": max(config.mpp, coarsest)})


def _map_size(slide: Slide, mpp: float) -> tuple[int, int]:
    # Rounded first: 900 * 0.5 / 0.1 is a little more than 4500.
    width, height = (max(1, math.ceil(round(side * slide.mpp / mpp, 6))) for side in slide.size_px)
    return width, height


def _areas(counts: dict[str, int], classes: Sequence[str], mpp: float) -> pd.DataFrame:
    pixels = np.array([counts[name] for name in classes])
    table = pd.DataFrame({"class": list(classes), "pixels": pixels, "area_mm2": pixels * mpp**2 / 1e6})
    return table.assign(fraction=pixels / max(pixels.sum(), 1), mpp=mpp)


def _write_sealed(path: Path, table: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        write_csv(temporary, table)
        write_sum(path, temporary)


def _read_areas(path: Path) -> pd.DataFrame:
    verify_sum(path)
    return read_csv_table(path, {"slide_id": Column("text"), "class": Column("text")}, hint="remove it and run again")
