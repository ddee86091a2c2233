"""A dataset folder as one image: every patient with the outlines of a mask, to be looked at before a run."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

from stedm.columns import fitted
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.errors import StedmError
from stedm.io.images import CLASS_COLOURS, write_png
from stedm.io.ownership import CHECKED, check_outputs

MOST_PATIENTS = 240
_IMAGE_PX, _GAP_PX, _LINE_PX, _LETTER_PX, _MARGIN_PX = 144, 10, 15, 7, 14
_LOOKED_AT = 8
"""Images of a patient of which one is shown."""
_PAPER, _INK, _SOFT = (252, 252, 250), (27, 29, 34), (86, 91, 100)
_IGNORED = (40, 40, 40)


def write_contact_sheet(dataset: Path, path: Path) -> str:
    """Draw the sheet and write it as PNG; returns a line on what is on it.

    Masks of `unlabeled` patients stay closed: their images are shown without outlines.

    Raises:
        StedmError: the folder can't be opened, or `path` is a file that stedm did not write.
    """
    check_outputs({path: CHECKED})
    folder = DatasetFolder.open(dataset)
    rows, table = rows_by_patient(folder.table), folder.table
    split = table.groupby("patient_id")["split"].first()
    patients = sorted(rows, key=lambda patient: (list(table["split"].unique()).index(split[patient]), patient))
    chosen = [
        patients[i] for i in np.linspace(0, len(patients) - 1, min(len(patients), MOST_PATIENTS)).round().astype(int)
    ]
    columns = max(4, min(12, math.ceil(math.sqrt(1.6 * len(chosen)))))
    cell = (_IMAGE_PX + _GAP_PX, _IMAGE_PX + 2 * _LINE_PX + _GAP_PX)
    top = 2 * _LINE_PX + _MARGIN_PX
    size = (2 * _MARGIN_PX + columns * cell[0], top + math.ceil(len(chosen) / columns) * cell[1] + _MARGIN_PX)
    sheet = Image.new("RGB", size, _PAPER)
    _legend(sheet, folder)
    for number, patient in enumerate(chosen):
        place = _MARGIN_PX + number % columns * cell[0], top + number // columns * cell[1]
        sheet.paste(_drawn(folder, rows[patient]), place)
        category = str(table["category"].iloc[rows[patient][0]])
        _write(sheet, place[0], place[1] + _IMAGE_PX + 1, patient, _INK)
        _write(sheet, place[0], place[1] + _IMAGE_PX + 1 + _LINE_PX, f"{split[patient]} {category}".strip(), _SOFT)
    write_png(path, np.asarray(sheet), software=CHECKED)
    some = f"{len(chosen)} of " if len(chosen) < len(patients) else ""
    return f"{path}: an image of each of {some}{len(patients)} patients"


def _drawn(folder: DatasetFolder, rows: np.ndarray) -> Image.Image:
    """The image of a patient whose mask is mixed most, outlined; a grey one with a word where none can be read."""
    try:
        masks = {int(row): _mask(folder, int(row)) for row in rows[:_LOOKED_AT]}
        row = max(masks, key=lambda row: -1.0 if masks[row] is None else float(np.std(masks[row] > 0)))
        image, mask = Image.fromarray(folder.read_image(row)), masks[row]
    except StedmError:
        image = Image.new("RGB", (_IMAGE_PX, _IMAGE_PX), (200, 200, 200))
        ImageDraw.Draw(image).text((8, _IMAGE_PX // 2 - 8), "not readable", _INK, _font())
        return image
    scale = _IMAGE_PX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    drawn = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    for index in np.unique(mask) if mask is not None else ():
        if index:
            _outline(ImageDraw.Draw(drawn), mask == index, scale, _colour(int(index), len(folder.info.classes)))
    square = Image.new("RGB", (_IMAGE_PX, _IMAGE_PX), _PAPER)
    square.paste(drawn)
    return square


def _mask(folder: DatasetFolder, row: int) -> np.ndarray | None:
    has_one = folder.table["mask_file_name"].iloc[row] != "" and folder.table["split"].iloc[row] != "unlabeled"
    return folder.read_mask(row) if has_one else None


def _outline(draw: ImageDraw.ImageDraw, inside: np.ndarray, scale: float, colour: tuple[int, int, int]) -> None:
    """A dark line under the bright one keeps it visible on any tissue."""
    borders = [(border[:, ::-1] - 0.5) * scale for border in find_contours(np.pad(inside, 1).astype(float), 0.5)]
    for width, ink in ((4, (0, 0, 0)), (2, colour)):
        for border in borders:
            draw.line([tuple(point) for point in border.tolist()], ink, width)


def _legend(sheet: Image.Image, folder: DatasetFolder) -> None:
    x, n = _MARGIN_PX, len(folder.info.classes)
    named = [(index, name) for index, name in enumerate(folder.info.classes) if index]
    for index, name in [*named, (n, "ignored")]:
        text, draw = fitted(name, 24), ImageDraw.Draw(sheet)
        draw.rectangle((x, _MARGIN_PX, x + 11, _MARGIN_PX + 11), _colour(index, n), (0, 0, 0))
        draw.text((x + 16, _MARGIN_PX - 1), text, _INK, _font())
        x += 30 + round(draw.textlength(text, _font()))


def _colour(index: int, classes: int) -> tuple[int, int, int]:
    return CLASS_COLOURS[index % len(CLASS_COLOURS)] if index < classes else _IGNORED


def _write(sheet: Image.Image, x: int, y: int, text: str, ink: tuple[int, int, int]) -> None:
    ImageDraw.Draw(sheet).text((x, y), fitted(text, _IMAGE_PX // _LETTER_PX), ink, _font())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
