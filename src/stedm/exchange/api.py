"""`stedm data import`: look at a source, say what was understood, write the dataset, draw its sheet, check it."""

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stedm.data.check import Examination, examine
from stedm.data.contact_sheet import write_contact_sheet
from stedm.errors import DiskError, StedmError
from stedm.exchange.importing import Understood, open_source, understand, write
from stedm.exchange.pieces import Pieces
from stedm.exchange.understood import understood_text
from stedm.io.files import require_new
from stedm.io.ownership import CHECKED, check_outputs
from stedm.progress import Reporter

_ON_SHEET = 2
"""Images of a patient that are looked at for the sheet of a dry run."""


@dataclass(frozen=True)
class Imported:
    """What was understood, where the contact sheet lies, and what `check` says of the folder (None: a dry run)."""

    understood: Understood
    sheet: Path
    examination: Examination | None

    @property
    def warnings(self) -> list[str]:
        """What may be meant as it is, but seldom is."""
        return [*self.understood.notes, *(self.examination.warnings if self.examination else [])]

    def refuse(self) -> None:
        """Raise what `check` refuses the new folder for."""
        if self.examination is not None and self.examination.problems:
            raise StedmError.of(self.examination.problems, "`stedm check` lists them")


def closing_text(done: Imported, output: Path) -> str:
    """What was written, and what comes next."""
    sheet = f"{done.sheet}: look whether outlines lie on what they should"
    if done.examination is None:
        return f"{sheet}\n{output}: not written; leave out --dry-run to write it"
    images, patients = (sum(getattr(part, name) for part in done.examination.splits) for name in ("images", "patients"))
    lines = [sheet, f"{output}: {images} images of {patients} patients"]
    if not done.understood.source.licence:
        lines.append(
            f"{output / 'dataset.yaml'}: fill in license and citation of the images; the card of every model that "
            "learns from them repeats it, or says that it is missing"
        )
    # Without unlabeled patients a run refuses most arms; a warning says what to do.
    if not done.examination.problems and (done.understood.rows["split"] == "unlabeled").any():
        named = shlex.quote(str(output))
        lines.append(f"next: stedm run {named} -o RUN (hours on a CPU; a first look in minutes: docs/import.md)")
    return "\n".join(lines)


def import_dataset(
    source: str | Path,
    output: str | Path,
    *,
    classes: str | None = None,
    masks: str | None = None,
    patients: str | None = None,
    split: str | None = None,
    seed: int = 0,
    mpp: float | None = None,
    tile_px: int | None = None,
    tile_mpp: float | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda _: None,
    reporter: Reporter | None = None,
) -> Imported:
    """Make a dataset folder from a folder of images and masks, nnU-Net, COCO, or tiles of QuPath.

    Args:
        source: the folder, or a COCO file.
        output: folder to make; it appears whole or not at all. Its contact sheet is OUTPUT.png.
        classes: names in the order of their indices, `background,gland`; or with values, `background=0,gland=1-`.
        masks: folder of the masks, or what their names end with; None = found.
        patients: table (CSV, Excel), or a pattern of file names such as `{patient}_*`; None = the table in the folder.
        split: `propose`, or patients of train/unlabeled/val/test, `4/6/2/4`; None = as the source says where it says
            it and no patient is in two, proposed otherwise.
        seed: of the proposal.
        mpp: microns per pixel of the images; None = as the table or the files say.
        tile_px: cut images larger than this into tiles.
        tile_mpp: reduce images to this resolution first.
        dry_run: write the contact sheet alone.
        say: is given what was understood, before anything is written, and what was left out.

    Raises:
        StedmError: one line for what can't be understood, or `output` holds files.
    """
    output, reporter, pieces = Path(output), reporter or Reporter(quiet=True), Pieces(tile_px, tile_mpp)
    if output.resolve().is_relative_to(Path(source).resolve()):
        raise StedmError(f"{output}: lies in the folder that is imported; give a place outside of it")
    require_new(output, "the dataset")
    sheet = output.with_name(f"{output.name}.png")
    check_outputs({sheet: CHECKED})
    told = {"classes": classes, "patients": patients, "split": split, "seed": seed, "mpp": mpp}
    opened = open_source(Path(source), masks)
    with reporter.stage("look at masks") as tick:
        found = understand(opened, **told, on_progress=tick)
    say(understood_text(found))
    if dry_run:
        some = found.rows.groupby("patient_id").head(_ON_SHEET)["key"]
        with tempfile.TemporaryDirectory() as folder:
            write(found, Path(folder) / output.name, pieces, list(some))
            write_contact_sheet(Path(folder) / output.name, sheet)
        return Imported(found, sheet, None)
    with reporter.stage("write images") as tick:
        blank = write(found, output, pieces, on_progress=tick)
    if blank:
        say(f"{blank} tiles are left out: nothing is annotated in them")
    try:
        write_contact_sheet(output, sheet)
    except DiskError as error:
        # Not to be run again: the dataset is there.
        verb = shlex.join(["stedm", "check", str(output), "--sheet", str(sheet)])
        hint = f"{output} is complete: draw it with `{verb}`"
        raise StedmError(f"{str(error).partition(';')[0]}; {hint}") from error
    return Imported(found, sheet, examine(output))
