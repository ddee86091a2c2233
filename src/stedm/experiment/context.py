"""What all stages of a run have in common: configuration, folder, data, progress."""

from functools import cached_property
from pathlib import Path

from stedm.config import RunConfig
from stedm.data.folder import DatasetFolder
from stedm.data.memory import CacheBudget
from stedm.data.squares import files_of, in_squares
from stedm.experiment.folder import check_unchanged, read_provenance, write_provenance
from stedm.experiment.resolve import annotated_part
from stedm.progress import Reporter


class RunContext:
    """Configuration (resolved), folder and data of one run.

    Attributes:
        writes_provenance: false in a worker: who started it writes what took how long.
    """

    writes_provenance = True

    def __init__(self, config: RunConfig, folder: Path, reporter: Reporter):
        self.config, self.folder, self.reporter = config, folder, reporter

    @cached_property
    def dataset(self) -> DatasetFolder:
        """The dataset folder, made first if it is a phantom. Masks of unlabeled patients can't be read through it."""
        return DatasetFolder.open(self._root, unseen_categories=self.config.data.unseen_categories, memory=self.memory)

    @cached_property
    def _root(self) -> Path:
        data = self.config.data
        if data.phantom is None:
            assert data.path is not None
            return data.path
        root = self.folder / "data"
        if not (root / "metadata.csv").is_file():
            from stedm.phantom.cohort import make_phantom

            with self.reporter.stage("phantom patients"):
                make_phantom(data.phantom, root)
        return root

    @cached_property
    def memory(self) -> CacheBudget:
        return CacheBudget(self.config.machine.cache_mb)

    @cached_property
    def annotated(self) -> DatasetFolder:
        return in_squares(annotated_part(self.dataset, self.config))

    @cached_property
    def unlabeled(self) -> DatasetFolder:
        return in_squares(self.dataset.split("unlabeled"))

    @cached_property
    def held_out(self) -> DatasetFolder:
        return in_squares(self.dataset.split(self.config.evaluation.split))

    @cached_property
    def with_all_masks(self) -> DatasetFolder:
        """Annotated images and those of the unlabeled patients with their masks: for the arm `upper` alone."""
        every = DatasetFolder.open(self.dataset.root, allow_unlabeled_masks=True, memory=self.memory)
        chosen = set(files_of(self.annotated)) | set(files_of(self.unlabeled))
        table = every.table
        has_mask = table["mask_file_name"] != ""
        return in_squares(every.select((table["image_file_name"].isin(chosen) & has_mask).to_numpy()))

    def note_seconds(self) -> None:
        """Add the wall times of the stages that ran to the provenance."""
        if not self.writes_provenance:
            return
        check_unchanged(self.folder, self.dataset)
        provenance = read_provenance(self.folder)
        provenance.setdefault("seconds", {}).update(self.reporter.seconds)
        write_provenance(self.folder, provenance)
