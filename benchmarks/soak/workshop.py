"""The materials of all trials: a tiny cohort, slides, runs, made once a state of the source code; and the stages."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import child
from .compare import contents, differences
from .trials import source_code

TINY: dict[str, Any] = {
    "name": "soak",
    "data": {"image_px": 32},
    "diffusion": {
        "steps": 6,
        "batch": 4,
        "denoiser": {"channels": [16, 16], "norm_groups": 8},
        "style": {"dim": 16},
    },
    "rounds": {
        "number": 2,
        "voters": 1,
        "labels": {"arm": "real+stain", "confidence": 0.5},
        "fine_tune": {"steps": 4},
    },
    "synthesis": {"n_images": 6, "batch": 3, "sampling": {"steps": 2}},
    "segmentation": {
        "encoder": "tu-test_resnet",
        "encoder_depth": 3,
        "decoder_channels": [16, 8, 8],
        "steps": 6,
        "batch": 4,
        "mirror": False,
        "arms": ["real", "ssl", "self-training", "real+stain+synthetic"],
        "seeds": [0],
    },
    "machine": {"checkpoint_every_steps": 2},
}
"""A run with all that a run can do, in seconds."""
PHANTOM = {
    "stain": "he",
    "image_px": 32,
    "patients": {"train": 2, "unlabeled": 3, "val": 1, "test": 2},
    "images_per_patient": 3,
}
TILING = {"tile_px": 64, "mpp": 1.0}
SLIDE_PX = (900, 700)


@dataclass(frozen=True)
class Stage:
    """A verb with its arguments: `command(materials, output)`; `output` is a path in the folder that is compared."""

    command: Callable[["Workshop", Path], list[Any]]
    output: str = "out"
    again: bool = True
    """Whether what is complete is done again or skipped; false where it is refused."""


STAGES: dict[str, Stage] = {
    "data phantom": Stage(lambda w, out: ["data", "phantom", out, "--config", w.at("phantom.yaml")], again=False),
    "tile": Stage(lambda w, out: ["tile", w.at("slides/slides.csv"), "-o", out, *_tiling(w)]),
    "tile --table-only": Stage(
        lambda w, out: ["tile", w.at("slides/slides.csv"), "-o", out, "--table-only", *_tiling(w)]
    ),
    "train diffusion": Stage(lambda w, out: ["train", "diffusion", w.at("run.yaml"), "-o", out]),
    "run": Stage(lambda w, out: ["run", w.at("run.yaml"), "-o", out]),
    "run, latents": Stage(lambda w, out: ["run", w.at("latents.yaml"), "-o", out]),
    "plan": Stage(lambda w, out: ["plan", w.at("run.yaml"), "-n", 12, "-o", out], "plan.parquet"),
    "synthesize": Stage(lambda w, out: ["synthesize", w.at("run/model"), w.at("plan.parquet"), "-o", out]),
    "generate": Stage(lambda w, out: ["generate", w.at("run/model"), *_generate(w), "-o", out], "image.png"),
    "segment images": Stage(lambda w, out: ["segment", w.segmenter, w.at("cohort/images"), "-o", out]),
    "segment slides": Stage(
        lambda w, out: ["segment", w.segmenter, w.at("slides/slides.csv"), "-o", out, "--mpp", 1.0, "--label-map"]
    ),
    "evaluate": Stage(lambda w, out: ["evaluate", w.segmenter, w.at("cohort"), "-o", out]),
    "compare": Stage(lambda w, out: ["compare", w.at("run/report"), w.at("report"), "-o", out], "compared/report.html"),
}


def _tiling(workshop: "Workshop") -> list[Any]:
    return ["--config", workshop.at("tiling.yaml"), "--workers", 1]


def _generate(workshop: "Workshop") -> list[Any]:
    root = workshop.at("cohort")
    mask, image = next(root.glob("masks/A*.png")), next(root.glob("images/U*.png"))
    return ["--layout", mask, "--style", image, "--steps", 2]


class Workshop:
    """Folder of everything that trials need and make: `materials`, `references`, and room to work in."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve() / source_code()
        self.work = self.folder / "work"

    def at(self, name: str) -> Path:
        return self.folder / "materials" / name

    @property
    def segmenter(self) -> Path:
        return self.at("run/segmenters/real/seed-0/model")

    def prepare(self) -> None:
        """Make the materials, where they aren't there."""
        if (self.at(".") / "complete").is_file():
            return
        for other in self.folder.parent.glob("*/materials"):
            shutil.rmtree(other.parent)  # of other source code
        self.at(".").mkdir(parents=True)
        self._write_settings()
        self._must(child.run(_make_cohorts(self), self.work / "log"))
        for name, arguments in {
            "run": ["run", self.at("run.yaml"), "-o", self.at("run")],
            "run, latents": ["run", self.at("latents.yaml"), "-o", self.at("latents")],
            "plan": ["plan", self.at("run.yaml"), "-n", 12, "-o", self.at("plan.parquet")],
            "tile": ["tile", self.at("slides/slides.csv"), "-o", self.at("tiles"), *_tiling(self)],
            "table": ["tile", self.at("slides/slides.csv"), "-o", self.at("table"), "--table-only", *_tiling(self)],
            "evaluate": ["evaluate", self.segmenter, self.at("cohort"), "-o", self.at("report")],
        }.items():
            print(f"materials: {name}", flush=True)
            self._must(child.run(child.stedm(*arguments), self.work / "log"))
        from .readers import make_materials

        self._must(child.run(lambda: make_materials(self), self.work / "log"))
        (self.at(".") / "complete").write_text("")

    def _must(self, ended: child.Ended) -> None:
        if ended.status:
            raise RuntimeError(f"the materials could not be made: {ended.err[-2000:]}")

    def _write_settings(self) -> None:
        data = {**TINY["data"], "path": str(self.at("cohort"))}
        diffusion = {**TINY["diffusion"], "codec": {"kind": "autoencoder", "source": str(self.at("autoencoder"))}}
        latents = {
            "diffusion": diffusion,
            "recolour": {"probability": 0.0},
            "machine": {**TINY["machine"], "cache_latents": True},
            "rounds": {"number": 1, "voters": 1, "labels": None},
            "segmentation": {**TINY["segmentation"], "arms": ["real", "real+stain+synthetic"]},
        }
        for name, values in {
            "run.yaml": {**TINY, "data": data},
            "latents.yaml": {**TINY, "data": data, **latents},
            "phantom.yaml": {"name": "soak", "data": {"phantom": PHANTOM}},
            "tiling.yaml": {**TILING, "classes": _phantom_classes()},
        }.items():
            self.at(name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    def reference(self, name: str) -> tuple[dict[str, bytes], child.Ended]:
        """What a stage makes when nothing happens to it, and how it went; twice, so that it is known to be one."""
        if name not in self._references:
            made, ended = [], None
            for _ in range(2):
                out, ended = self.fresh(name), self.do(name)
                self._must(ended)
                made.append(contents(out))
            if other := differences(*made):
                raise RuntimeError(f"{name}: two uninterrupted runs differ: {other[:5]}")
            self._references[name] = (made[0], ended)
        return self._references[name]

    _references: dict[str, tuple[dict[str, bytes], child.Ended]] = {}

    def room(self, name: str) -> Path:
        """The folder that a stage works in; always the same, since plans and reports name it."""
        return self.work / "stages" / name.replace(" ", "_").replace(",", "")

    def fresh(self, name: str) -> Path:
        room = self.room(name)
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        return room

    def do(self, name: str, **how: Any) -> child.Ended:
        """Run a stage in its room."""
        stage = STAGES[name]
        return child.run(child.stedm(*stage.command(self, self.room(name) / stage.output)), self.work / "log", **how)


def _phantom_classes() -> list[str]:
    from stedm.config import PhantomConfig
    from stedm.phantom.slides import classes

    return classes(PhantomConfig(**{**PHANTOM, "image_px": 256}))


def _make_cohorts(workshop: Workshop) -> Callable[[], None]:
    def make() -> None:
        import torch
        from diffusers import AutoencoderKL

        from stedm.config import PhantomConfig
        from stedm.phantom.cohort import make_phantom
        from stedm.phantom.slides import make_phantom_slides

        make_phantom(PhantomConfig(**PHANTOM), workshop.at("cohort"))
        slides = {**PHANTOM, "image_px": 256, "patients": {"train": 1, "unlabeled": 1, "test": 1}}
        make_phantom_slides(PhantomConfig(**slides), workshop.at("slides"), SLIDE_PX, unit_px=256)
        make_phantom_slides(PhantomConfig(**slides), workshop.at("ome"), SLIDE_PX, kind="ome", unit_px=256)
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        autoencoder = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, **blocks)
        autoencoder.save_pretrained(workshop.at("autoencoder"))

    return make
