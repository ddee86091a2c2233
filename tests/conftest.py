"""Fixtures shared by all tests: a tiny dataset folder made on the spot, and the real datasets where present."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from stedm.cli import main
from stedm.config import DenoiserConfig, DiffusionConfig, MachineConfig, StyleConfig
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.seeds import numpy_generator
from stedm.training import device
from stedm.workers.pool import Pool, do_piece, new_name

# A shell has what it starts with `&` ignore Ctrl-C, and commands that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_PATIENTS = {"train": 2, "unlabeled": 3, "val": 2, "test": 2}


def make_tiny_dataset(
    root: Path, patients: dict[str, int] = TINY_PATIENTS, images: int = 3, image_px: int = 32, seed: int = 0
) -> Path:
    """Write a dataset folder: per image a disc (class 1) on background (class 0), both in the patient's own colours.

    Categories alternate between "a" and "b" within each split. All images have masks; those of `unlabeled` too, as
    in a real cohort that is annotated after all, so that tests can see whether anyone reads them.
    """
    rows = []
    y, x = np.mgrid[:image_px, :image_px]
    for split, count in patients.items():
        for number in range(count):
            # Not "train0": Hugging Face takes split words in file names, followed by a digit or dash, for its splits.
            patient = f"{split}P{number}"
            colours = numpy_generator(seed, patient).integers(40, 216, (2, 3))
            for index in range(images):
                generator = numpy_generator(seed, patient, index)
                centre_y, centre_x = generator.uniform(0.3, 0.7, 2) * image_px
                radius = generator.uniform(0.15, 0.3) * image_px
                mask = ((y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2).astype(np.uint8)
                noise = generator.normal(0, 4, (image_px, image_px, 3))
                name = f"{patient}-{index}.png"
                write_png(root / "images" / name, np.clip(colours[mask] + noise, 0, 255).astype(np.uint8))
                write_png(root / "masks" / name, mask)
                rows.append(
                    {
                        "image_file_name": f"images/{name}",
                        "mask_file_name": f"masks/{name}",
                        "patient_id": patient,
                        "slide_id": f"{patient}-s",
                        "split": split,
                        "category": "ab"[number % 2],
                    }
                )
    write_metadata(root, DatasetInfo(name="tiny", classes=["background", "disc"]), pd.DataFrame(rows))
    return root


@pytest.fixture
def tiny_dataset(tmp_path):
    """Factory: `tiny_dataset(patients=..., images=..., image_px=..., seed=..., name=...)` gives the folder."""

    def make(name: str = "tiny", **options) -> Path:
        return make_tiny_dataset(tmp_path / name, **options)

    return make


def pseudo_labels_of_ones(images: DatasetFolder, folder: Path) -> DatasetFolder:
    """A folder as stedm.segmentation.pseudo_labels writes it, every pixel of class 1."""
    names = [f"masks/{row}.png" for row in range(len(images))]
    for row, name in enumerate(names):
        write_png(folder / name, np.ones_like(images.read_image(row)[..., 0]))
        write_png(folder / name.replace("masks", "images"), images.read_image(row))
    table = images.table.assign(
        source_image_file_name=images.table["image_file_name"],
        image_file_name=[name.replace("masks", "images") for name in names],
        mask_file_name=names,
        split="train",
    )
    write_metadata(folder, images.info, table)
    return DatasetFolder.open(folder)


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """Function: a folder as `datasets` reads it, offline."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def read(root: Path):
        """All rows, which it calls split `train` where it sees no splits; a row is decoded when it is asked for."""
        return datasets.load_dataset(
            "imagefolder", data_dir=str(root), split="train", cache_dir=str(tmp_path / "cache")
        )

    yield read
    gc.collect()  # its open files


@pytest.fixture(scope="module")
def browser():
    """Chromium as Debian has it, without a window and without a network, driven by Playwright; skips where one of the
    two is not there, unless STEDM_BROWSER=required (as in continuous integration).

    Of a module: while it is open, no event loop can be started in this thread.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        message = "no Chromium with Playwright: apt-get install chromium; pip install playwright"
        pytest.fail(message) if os.environ.get("STEDM_BROWSER") == "required" else pytest.skip(message)
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as driver:
        window = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        )
        yield window
        window.close()


@pytest.fixture(scope="session")
def page_checks():
    """JavaScript that finds what can't be read in a page (see page_checks.js)."""
    return Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")


def _plain_reports() -> Iterator[None]:
    """Reports of runs without pictures, which take a quarter of the time of a tiny run: for tests that look elsewhere.

    The pages are tested in tests/evaluation, and by runs without this fixture.
    """
    from stedm.evaluation import panels, report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "report_panels", lambda **_: None)
        patch.setattr(report, "render", lambda *_: "stedm report")
        yield


plain_reports = pytest.fixture(_plain_reports)
plain_reports_of_module = pytest.fixture(scope="module")(_plain_reports)


@pytest.fixture
def predicted_ones():
    """Function: a folder of predicted layouts for images, every pixel of class 1."""
    return pseudo_labels_of_ones


@pytest.fixture
def command():
    """Function: a command of stedm in a process of its own, forked from this one, which has imported all; gives its
    exit status, or the signal that ended it as a negative number.

    before: called in that process first, such as to have it killed somewhere.
    """

    def ran(*arguments: object, before: Callable[[], None] = lambda: None) -> int | None:
        def work() -> None:
            before()
            main([str(argument) for argument in arguments])

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        return process.exitcode

    return ran


class PicklingPool(Pool):
    """Does everything here, last piece first, but sends it through pickle as engines with other processes do."""

    pieces = 0

    def run(self, job, pieces):
        job, name = pickle.dumps(job), new_name()
        for number, piece in reversed(list(enumerate(pieces))):
            self.pieces += 1
            result = do_piece(name, pickle.loads(job), pickle.loads(pickle.dumps(piece)))
            yield number, pickle.loads(pickle.dumps(result))

    def __exit__(self, *error):
        pass


@pytest.fixture
def pickling_pool():
    """A pool that stands for one with other processes."""
    return PicklingPool()


@pytest.fixture
def elsewhere(monkeypatch):
    """A context that stands for a machine with another device than the CPU, `cuda:7`: any network that runs in it and
    was not put there by `stedm.training.device` is an error, and so is a place that was not asked for by that name.

    Entering it gives the list of the names that were asked for.
    """

    @contextlib.contextmanager
    def entered():
        moved, asked, to, move = weakref.WeakSet(), [], nn.Module.to, device.move.__code__

        def note(network, *arguments, **options):
            callers = itertools.islice(_frames(sys._getframe(1)), 4)
            if any(frame.f_code is move for frame in callers):
                moved.update(network.modules())
            return to(network, *arguments, **options)

        def refuse(network, _):
            forgotten = network not in moved and any(True for _ in network.parameters())
            assert not forgotten, f"a {type(network).__name__} runs where it was loaded, on the CPU"

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "to", note)
            patch.setattr(device, "device_name", lambda name, *_: asked.append(name) or "cpu")
            hook = register_module_forward_pre_hook(refuse)
            try:
                yield asked
            finally:
                hook.remove()
        assert set(asked) == {"cuda:7"}, f"asked for {sorted(set(asked))} where cuda:7 was wanted"

    return entered


def _frames(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back


@pytest.fixture
def shared_data():
    """Function from a dataset's name to its folder; skips where the real datasets are not at hand.

    They are looked for in the folder named by STEDM_SHARED_DATA, else in shared/data beside the repository.
    """
    default = Path(__file__).parents[1].parent / "shared" / "data"
    base = Path(os.environ.get("STEDM_SHARED_DATA") or default)

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"no {name} in {base}: set STEDM_SHARED_DATA to the folder of the real datasets")
        return base / name

    return find


@pytest.fixture(scope="session")
def tiny_run():
    """Factory: `tiny_run(data, **segmentation)` gives the values of a configuration whose networks train in seconds."""

    def make(data: dict, **segmentation) -> dict:
        return {
            "name": "tiny",
            "data": {"image_px": 32, **data},
            "diffusion": {
                "steps": 2,
                "batch": 4,
                "denoiser": {"channels": [16, 16], "norm_groups": 8},
                "style": {"dim": 16},
            },
            "rounds": {"number": 1, "voters": 1, "labels": {"arm": "real+stain"}},
            "synthesis": {"n_images": 6, "batch": 3, "sampling": {"steps": 2}},
            "segmentation": {
                "encoder": "tu-test_resnet",
                "encoder_depth": 3,
                "decoder_channels": [16, 8, 8],
                "steps": 2,
                "batch": 4,
                "synthetic_fraction": 0.8,
                "mirror": False,
                "arms": ["real", "real+stain", "real+synthetic", "real+stain+synthetic"],
                **segmentation,
            },
        }

    return make


def small_diffusion(**changes) -> DiffusionConfig:
    """A configuration with which a step takes milliseconds."""
    values = {
        "denoiser": DenoiserConfig(channels=[16, 24], norm_groups=8, layout_channels=4),
        "style": StyleConfig(dim=16, n_images=2),
        "steps": 4,
        "batch": 4,
        "lr": 0.001,
        "time_shift": 1.0,
    }
    return DiffusionConfig(**{**values, **changes})


@pytest.fixture
def machine():
    """A machine whose arithmetic is the same everywhere, with checkpoints in a run of four steps."""
    return MachineConfig(precision="fp32", checkpoint_every_steps=2)


@pytest.fixture
def diffusion_config():
    """Function: the small configuration with changes."""
    return small_diffusion
