"""`stedm tile`: from a table of slides to a dataset folder, of image files or of regions that are read when needed.

First the tissue of every slide is found and its grid of tiles written down (one small table a slide), then, unless only
the table is asked for, the tiles are written. Both are done by worker processes and can be interrupted: finished pieces
appear whole, and the same call goes on with what is missing. `metadata.csv` comes last.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import yaml

from stedm.config import TilingConfig
from stedm.data.check import tile_warnings
from stedm.data.duplicates import slide_findings
from stedm.data.folder import DatasetInfo, write_metadata, write_png
from stedm.data.regions import Annotation, AnnotationReader, annotation_reader
from stedm.errors import DiskError, StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet
from stedm.io.files import claim, fingerprint, write_text
from stedm.io.images import class_palette, write_tiff
from stedm.io.names import without_split_words
from stedm.io.tables import patient_warnings, write_csv
from stedm.io.yaml_text import parse_yaml, yaml_text
from stedm.progress import Reporter
from stedm.slides.placement import misses_tissue
from stedm.slides.slide import Slide
from stedm.slides.table import read_slides
from stedm.slides.tissue import TissueMask
from stedm.workers.pool import Job, LocalPool, Pool, Work, check_shared

_TILES_A_JOB = 32
_COMPRESS_LEVEL = 1
"""Compression of images: files of tissue grow by a tenth and are written in a third of the time."""


@dataclass(frozen=True)
class TilingResult:
    """What `tile_slides` did."""

    tiles: int
    slides: int
    """Slides with tiles."""
    without_tissue: list[str]
    """Slide ids."""
    failures: list[str]
    """A line for each slide that could not be read."""
    notes: list[str]
    """Lines about slides that were read otherwise than their files say at first sight: objects left out, bounds."""
    warnings: list[str] = field(default_factory=list)
    """What is odd about the tiles as a whole: the classes that occur, ids that look alike."""
    complete: bool = True
    """False while other shards have work left; the numbers are then those of the slides that are done."""


def tile_grid(slide: Slide, tissue: TissueMask, config: TilingConfig) -> pd.DataFrame:
    """The tiles of a slide that hold enough tissue, row by row.

    Columns: x, y (upper left corner, whole pixels of level 0), tile_px, mpp, slide_mpp, tissue_fraction; for a slide
    with bounds also bounds_x, bounds_y, where on level 0 x and y begin. The grid begins at the slide's corner. Its last
    tiles may hang over the edge of a slide, where there is glass; those of a plain image, which is tissue to its edge,
    are moved inside.
    """
    scale = config.mpp / slide.mpp
    stride = (config.stride_px or config.tile_px) * scale
    x, y = (np.round(np.arange(0, side, stride)).astype(np.int64) for side in slide.size_px)
    if slide.reader == "image":
        last = (max(0, math.floor(side - config.tile_px * scale)) for side in slide.size_px)
        x, y = (np.unique(np.minimum(at, most)) for at, most in zip((x, y), last, strict=True))
    x, y = (values.ravel() for values in np.meshgrid(x, y))
    fraction = tissue.fractions(x, y, config.tile_px * scale)
    # With min_tissue 0 a tile still needs some tissue.
    enough = (fraction >= config.min_tissue) & (fraction > 0)
    tiles = pd.DataFrame(
        {
            "x": x[enough],
            "y": y[enough],
            "tile_px": config.tile_px,
            "mpp": config.mpp,
            "slide_mpp": slide.mpp,
            "tissue_fraction": fraction[enough].round(4),
        }
    )
    if slide.origin_px != (0, 0):
        tiles["bounds_x"], tiles["bounds_y"] = slide.origin_px
    return tiles


def class_fractions(tiles: pd.DataFrame, annotation: Annotation, classes: list[str]) -> pd.DataFrame:
    """Part of each tile's area that is of each class: columns `fraction_CLASS`; what is missing to 1 is ignored."""
    counts = np.zeros((len(tiles), 256), np.int64)
    for row, tile in enumerate(tiles.itertuples()):
        mask = annotation.rasterise(tile.x, tile.y, tile.tile_px, tile.mpp / tile.slide_mpp)
        counts[row] = np.bincount(mask.ravel(), minlength=256)
    fractions = counts[:, : len(classes)] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return pd.DataFrame(fractions.round(4), columns=[f"fraction_{name}" for name in classes], index=tiles.index)


def slide_rows(
    row: dict[str, Any], config: TilingConfig, read_annotation: AnnotationReader | None = None
) -> pd.DataFrame:
    """All rows of the metadata that a row of `slides.csv` gives.

    The annotation of an `unlabeled` slide is not read, so its tiles have no class fractions. A tile of another slide
    has a mask if enough of it is annotated (`config.min_annotated`); without one it stays in split `train` as a source
    of styles, and is left out of `val` and `test`, where it could not be scored. `attrs["notes"]` has the lines about
    the annotation that a user should see.
    """
    slide = Slide.open(row["image"], None if np.isnan(row["mpp"]) else row["mpp"])
    tissue = TissueMask.of(slide, config.tissue)
    tiles, notes = tile_grid(slide, tissue, config), []
    has_mask = np.full(len(tiles), bool(row["annotation"]))
    if row["annotation"] and row["split"] != "unlabeled":
        read = read_annotation or annotation_reader(config.classes, config.ignore_index, config.class_mapping)
        annotation = read(Path(row["annotation"]), slide)
        if misses_tissue(annotation, tissue):
            raise StedmError(
                f"{row['annotation']}: no region touches tissue; correct it if it is of another slide or resolution"
            )
        notes += getattr(annotation, "notes", ())
        fractions = class_fractions(tiles, annotation, config.classes)
        has_mask = fractions.sum(axis=1).to_numpy() >= max(config.min_annotated, 1e-4)
        tiles = tiles.join(fractions)
    names = [f"{_folder_name(row['slide_id'])}/{x}_{y}" for x, y in zip(tiles["x"], tiles["y"], strict=True)]
    suffix = {"png": ".png", "tiff": ".tif"}[config.image_format]
    kept = has_mask | (row["split"] in ("train", "unlabeled")) | (not row["annotation"])
    first = {
        "image_file_name": [f"images/{name}{suffix}" for name in names],
        "mask_file_name": [f"masks/{name}.png" if has else "" for name, has in zip(names, has_mask, strict=True)],
    }
    of_slide = {key: value for key, value in row.items() if key not in ("image", "annotation") and key not in tiles}
    table = pd.DataFrame(first).assign(**of_slide).join(tiles)[kept].reset_index(drop=True)
    table.attrs["notes"] = list(notes)
    return table


def _folder_name(slide_id: str) -> str:
    # Slides are called train_1, and Hugging Face's ImageFolder reads these folders too.
    return without_split_words(slide_id)


def write_tiles(
    row: dict[str, Any],
    tiles: pd.DataFrame,
    config: TilingConfig,
    root: Path,
    read_annotation: AnnotationReader | None = None,
) -> int:
    """Write the images and masks of some tiles of a slide; files that are there are left as they are."""
    slide = Slide.open(row["image"], None if np.isnan(row["mpp"]) else row["mpp"])
    annotation = None
    for tile in tiles.itertuples():
        if not (path := root / tile.image_file_name).exists():
            image = slide.read(tile.x, tile.y, tile.tile_px, tile.mpp)
            if config.image_format == "tiff":
                write_tiff(path, image)
            else:
                write_png(path, image, compress_level=_COMPRESS_LEVEL)
        if tile.mask_file_name and not (path := root / tile.mask_file_name).exists():
            if annotation is None:
                read = read_annotation or annotation_reader(config.classes, config.ignore_index, config.class_mapping)
                annotation = read(Path(row["annotation"]), slide)
            mask = annotation.rasterise(tile.x, tile.y, tile.tile_px, tile.mpp / slide.mpp)
            write_png(path, mask, palette=class_palette(config.ignore_index))
    return len(tiles)


def tile_slides(
    slides_csv: str | Path,
    root: str | Path,
    config: TilingConfig,
    *,
    table_only: bool = False,
    workers: int = 1,
    pool: Pool | None = None,
    shard: tuple[int, int] = (0, 1),
    reporter: Reporter | None = None,
) -> TilingResult:
    """Make a dataset folder of the tiles of all slides; call it again to go on.

    With `table_only` no image is written: the folder gets `slides.csv` and `tiling.yaml`, and its rows are read from
    the slides (see stedm.data.regions). A slide that can't be read is in `failures` and not in the dataset; the next
    call tries it again.

    Args:
        workers: processes, where no pool is given.
        pool: who does the work (see stedm.workers.pool); it is not closed.
        shard: (i, n) does only the slides i, i + n, i + 2 n, ...; shards may run at the same time, and the one that is
            done last writes `metadata.csv`.

    Raises:
        StedmError: the table is wrong, the folder was made with other settings, or no slide has a tile.
    """
    root, reporter = Path(root), reporter or Reporter(quiet=True)
    slides = read_slides(slides_csv)
    if (slides["annotation"] != "").any() and not config.classes:
        raise StedmError(f"{slides_csv}: there are annotations; name the classes in the tiling configuration (classes)")
    _claim(root, config, table_only)
    rows = slides.to_dict("records")
    with contextlib.nullcontext(pool) if pool else LocalPool(workers) as running:
        work = _Tiling(root.resolve(), config, {row["slide_id"]: row for row in rows[shard[0] :: shard[1]]}, running)
        with reporter.stage("find tissue") as tick:
            tables, failures = work.find_tiles(tick)
        if not table_only and tables:
            with reporter.stage("write tiles") as tick:
                failures |= work.write_tiles(tables, tick)
    complete, warnings = True, []
    if shard[1] > 1:
        work.note(failures)
        tables, failures, complete = _of_all_shards(root, config, rows, table_only)
    tables = {slide_id: table for slide_id, table in tables.items() if slide_id not in failures}
    if complete:
        if not sum(map(len, tables.values())):
            raise StedmError("\n".join(failures.values()) or f"{slides_csv}: no slide has a tile with enough tissue")
        warnings = [*_finish(root, config, slides, tables, table_only), *patient_warnings(slides, "slides")]
        # `check` refuses the first of them; here the slides that aren't two are done.
        warnings += [line for lines in slide_findings(slides) for line in lines]
    return TilingResult(
        tiles=sum(map(len, tables.values())),
        slides=sum(len(table) > 0 for table in tables.values()),
        without_tissue=[slide_id for slide_id, table in tables.items() if len(table) == 0],
        failures=list(failures.values()),
        notes=_notes(tables),
        warnings=warnings,
        complete=complete,
    )


def _notes(tables: dict[str, pd.DataFrame]) -> list[str]:
    lines = [f"slide {slide_id}: {note}" for slide_id, table in tables.items() for note in table.attrs.get("notes", [])]
    if bounded := [slide_id for slide_id, table in tables.items() if "bounds_x" in table]:
        named = ", ".join(bounded[:3]) + (f" and {len(bounded) - 3} more" if bounded[3:] else "")
        lines.append(f"slides with bounds: {named}; x, y and annotations count from their corner, as QuPath's do")
    return lines


def _claim(root: Path, config: TilingConfig, table_only: bool) -> None:
    """Write down the settings of a new folder; refuse one that was made with others."""
    wanted = {**config.model_dump(mode="json"), "table_only": table_only}
    changed: list[str] = []

    def is_mine(text: str) -> bool:
        try:
            made = parse_yaml(text)
        except (yaml.YAMLError, ValueError):
            made = None
        changed[:] = sorted(key for key in wanted if not isinstance(made, dict) or made.get(key) != wanted[key])
        return not changed

    claim(
        root / "tiling.yaml",
        yaml_text(wanted),
        is_mine,
        another=lambda: f"{root}: was made with another {', '.join(changed)} (tiling.yaml); give a new folder",
        not_empty=f"{root}: the folder is not empty; give a new one for the tiles",
    )


def _finish(root: Path, config: TilingConfig, slides: pd.DataFrame, tables: dict, table_only: bool) -> list[str]:
    """Write the tables of the folder; returns what is odd about the classes of its tiles."""
    info = DatasetInfo(
        name=config.name,
        classes=config.classes or ["background"],
        ignore_index=config.ignore_index,
        licence=config.licence,
        citation=config.citation,
    )
    used = {slide_id: table for slide_id, table in tables.items() if len(table)}
    if table_only:
        kept = slides[slides["slide_id"].isin(used)]
        # The resolution that the positions were computed with, also where the file said it.
        kept = kept.assign(mpp=[used[slide_id]["slide_mpp"].iloc[0] for slide_id in kept["slide_id"]])
        write_csv(root / "slides.csv", kept)
    table = pd.concat(used.values(), ignore_index=True)
    write_metadata(root, info, table)
    return tile_warnings(info, table) if config.classes else []


def _of_all_shards(
    root: Path, config: TilingConfig, rows: list[dict[str, Any]], table_only: bool
) -> tuple[dict[str, pd.DataFrame], dict[str, str], bool]:
    """Tables and failures of the slides that any shard is done with, by slide id, and whether that is all of them."""
    tables, failures, complete = {}, {}, True
    for row in rows:
        path, slide_id = _table_path(root, config, row), row["slide_id"]
        if (note := path.with_suffix(".failed")).is_file():
            failures[slide_id] = note.read_text(encoding="utf-8").strip()
        elif path.is_file() and (table_only or _are_written(root, table := _read_tiles(path))):
            tables[slide_id] = _read_tiles(path) if table_only else table
        else:
            complete = False
    return tables, failures, complete


def _read_tiles(path: Path) -> pd.DataFrame:
    """The tiles of a slide as `_FindTiles` has written them."""
    texts = ("image_file_name", "mask_file_name", "slide_id", "patient_id", "split")
    return read_parquet(path, dict.fromkeys(texts, Column("text")), what="a table of tiles", hint="remove it")


def _are_written(root: Path, tiles: pd.DataFrame) -> bool:
    names = (name for column in ("image_file_name", "mask_file_name") for name in tiles[column] if name)
    return all((root / name).is_file() for name in names)


def _table_path(root: Path, config: TilingConfig, row: dict[str, Any]) -> Path:
    # Named by all that decides its content, so that a corrected row of slides.csv, or file of it, is done anew.
    files = [Path(row[name]) for name in ("image", "annotation") if row[name]]
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()]
    return root / ".tiling" / f"{row['slide_id']}-{fingerprint([row, config.model_dump(), stamps])}.parquet"


@dataclass(frozen=True)
class _FindTiles:
    """A piece is a row of slides.csv; its result the table of tiles, or a line that says why there is none."""

    root: Path
    config: TilingConfig
    uses_gpu: ClassVar[bool] = False

    def open(self) -> Work:
        check_shared(self.root)
        return self._of_slide

    def _of_slide(self, row: dict[str, Any]) -> pd.DataFrame | str:
        try:
            table = slide_rows(row, self.config)
        except StedmError as error:
            return _failure(row, error)
        write_parquet(table, _table_path(self.root, self.config, row))
        return table


@dataclass(frozen=True)
class _WriteTiles:
    """A piece is a row of slides.csv and some of its tiles; the result their number, or a line about what failed."""

    root: Path
    config: TilingConfig
    uses_gpu: ClassVar[bool] = False

    def open(self) -> Work:
        check_shared(self.root)
        return self._some

    def _some(self, piece: tuple[dict[str, Any], pd.DataFrame]) -> int | str:
        row, tiles = piece
        try:
            return write_tiles(row, tiles, self.config, self.root)
        except DiskError:  # not the slide's fault: it isn't given up
            raise
        except StedmError as error:
            return _failure(row, error)


def _failure(row: dict[str, Any], error: StedmError) -> str:
    return f"slide {row['slide_id']}: {' '.join(str(error).split())}"


@dataclass(frozen=True)
class _Tiling:
    """The slides of one call, by id."""

    root: Path
    config: TilingConfig
    rows: dict[str, dict[str, Any]]
    pool: Pool

    def find_tiles(self, tick: Callable[..., None]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
        """Tables and failures by slide id, in the order of the slides."""
        tables, missing = {}, []
        for slide_id, row in self.rows.items():
            path = _table_path(self.root, self.config, row)
            path.with_suffix(".failed").unlink(missing_ok=True)
            if path.is_file():
                tables[slide_id] = _read_tiles(path)
            else:
                missing.append(slide_id)
                # Tiles of another image or annotation under the same name are not those of this one. Not removed by
                # the worker: one that is taken for dead and goes on must not remove what another wrote.
                for kind in ("images", "masks"):
                    shutil.rmtree(self.root / kind / _folder_name(slide_id), ignore_errors=True)
        failures: dict[str, str] = {}
        tick(len(tables), len(self.rows))
        job = _FindTiles(self.root, self.config)
        for slide_id, table in self._run(job, missing, [self.rows[slide_id] for slide_id in missing]):
            (failures if isinstance(table, str) else tables)[slide_id] = table
            tick(len(tables) + len(failures), len(self.rows))
        return {i: tables[i] for i in self.rows if i in tables}, {i: failures[i] for i in self.rows if i in failures}

    def write_tiles(self, tables: dict[str, pd.DataFrame], tick: Callable[..., None]) -> dict[str, str]:
        """Failures by slide id."""
        slide_ids, pieces = [], []
        for slide_id, table in tables.items():
            for start in range(0, len(table), _TILES_A_JOB):
                slide_ids.append(slide_id)
                pieces.append((self.rows[slide_id], table.iloc[start : start + _TILES_A_JOB]))
        done, total = 0, sum(map(len, tables.values()))
        failures: dict[str, str] = {}
        for slide_id, outcome in self._run(_WriteTiles(self.root, self.config), slide_ids, pieces):
            if isinstance(outcome, str):
                failures.setdefault(slide_id, outcome)
            else:
                tick(done := done + outcome, total)
        return failures

    def note(self, failures: dict[str, str]) -> None:
        """Write down what failed, so that other shards don't wait for it."""
        for slide_id, line in failures.items():
            write_text(_table_path(self.root, self.config, self.rows[slide_id]).with_suffix(".failed"), line + "\n")

    def _run(self, job: Job, slide_ids: list[str], pieces: list[Any]) -> Iterator[tuple[str, Any]]:
        return ((slide_ids[number], outcome) for number, outcome in self.pool.run(job, pieces))
