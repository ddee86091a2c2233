"""The engineering of a training loop: devices, resumable sample stream, averaged weights, checkpoints, metrics.

A run is a function of the images it has seen: sample i of the stream is a pure function of (seed, i), and the
generator for noise is seeded anew before each step from (seed, images seen). A run killed at any moment and started
again therefore ends in the same weights as an uninterrupted one (the practice of EDM2, Karras et al. 2024).
Data parallelism is Accelerate's, the device `stedm.training.device`'s; averaged weights are diffusers' EMAModel.
What each choice here gains is in docs/performance.md.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from stedm.config import MachineConfig, TrainingConfig
from stedm.errors import StedmError
from stedm.io.files import write_text, writing
from stedm.progress import Reporter
from stedm.seeds import torch_generator
from stedm.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from stedm.training.device import choose_device, move
from stedm.training.precision import autocast, resolve_precision
from stedm.training.tracker import Tracker
from stedm.workers.group import group_size

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, the loss that was read last), and once before where a training
is gone on with, of which no loss was read yet (NaN)."""

WARMUP_STEPS = 100
WEIGHT_DECAY = 0.01
_LOG_EVERY_STEPS = 10
_WORKERS_PER_GPU = 8
"""An H200 needs more samples of the paper's preset than four make from PNG (benchmarks/pipeline.py)."""
_KEEP_CHECKPOINTS = 2


class Trainer:
    """Run a training loop so that it can be killed and resumed.

    Args:
        network: one module with everything that learns; the optimizer gets `network.parameters()` whole.
        folder: the run folder; `checkpoints/` and `metrics.jsonl` are written there.
        config: steps, batch (over all processes), learning rate and the like.
        machine: precision, workers, parts of a batch and the like; weights and their averages are float32 in every
            precision.
        seed: of noise and augmentation.
        warmup_steps: in which the learning rate rises linearly, before it falls to 0 along a cosine; None =
            `WARMUP_STEPS`, but a tenth of all steps at most.
        ema_decay: largest decay of the averaged weights; None = no average.
    """

    def __init__(
        self,
        network: nn.Module,
        folder: Path,
        config: TrainingConfig,
        machine: MachineConfig | None = None,
        *,
        seed: int,
        warmup_steps: int | None = None,
        ema_decay: float | None = None,
        on_progress: Progress | None = None,
    ):
        from accelerate import Accelerator
        from accelerate.utils import DataLoaderConfiguration

        self.folder, self.config, self.seed, self.on_progress = Path(folder), config, seed, on_progress
        self.machine = machine or MachineConfig()
        self.device = choose_device(self.machine.device)
        # Precision and devices are not left to Accelerate: its state is global, and a run may train its parts in
        # different ones. Only processes on CPUs need to be told so: else it takes each for one of its own.
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu" and group_size() > 1,
            mixed_precision="no",
            device_placement=False,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        self.warmup_steps = min(WARMUP_STEPS, config.steps // 10) if warmup_steps is None else warmup_steps
        self._refuse_unequal_parts()
        # On a CPU group normalisation in channels_last takes more than the convolutions gain: there it is the network's
        # own choice.
        move(network, self.device)
        if self.machine.compile:
            # In place: a wrapper would change the names of the weights in checkpoints.
            network.compile()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY, fused=True)
        self.network = self.accelerator.prepare(network)
        # Gradients of float16 vanish unless the loss is scaled up; in other precisions this does nothing.
        self._precision = resolve_precision(self.machine.precision, self.device, network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._precision == "fp16")
        self.ema = None
        if ema_decay is not None:
            from diffusers.training_utils import EMAModel  # seconds, which segmenters save

            self.ema = EMAModel(self.network.parameters(), decay=ema_decay, foreach=True)
        self.step_done = 0
        self.part, self._loss, self._last_loss = 0, torch.zeros((), device=self.device), math.nan
        self._resume()
        is_main = self.accelerator.is_main_process
        self.tracker = Tracker(self.machine.tracker if is_main else "none", self.folder, self.step_done)

    @property
    def images_seen(self) -> int:
        return self.step_done * self.config.batch

    def batches(self, samples: Dataset) -> Iterator[Any]:
        """Yield the batches that remain, each in `accumulate` parts; `samples[i]` must be a pure function of i."""
        self.network.train()
        for batch in self._loader(samples):
            rank, part = self.accelerator.process_index, (("part", self.part) if self.part else ())
            self.generator = torch_generator(self.seed, "step", self.images_seen, "rank", rank, *part)
            # Processes exchange their gradients with the last part only.
            is_last = self.part == self.machine.accumulate - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.network):
                yield batch
        self.tracker.close()
        self.accelerator.wait_for_everyone()

    def _loader(self, samples: Dataset) -> Iterator[Any]:
        """Batches on the device, read ahead by `workers` processes."""
        workers = resolve_workers(self.machine.workers, self.device, self.accelerator.num_processes)
        loader = DataLoader(
            samples,
            batch_size=self.config.batch // self.machine.accumulate,
            sampler=range(self.images_seen, self.config.steps * self.config.batch),
            num_workers=workers,
            # Forked workers share the images in memory.
            multiprocessing_context="fork" if workers else None,
            pin_memory=self.device.type == "cuda",
            # Of its own, which no sample is drawn from: else the loader draws a number from the global one.
            generator=torch_generator(self.seed, "loader"),
        )
        from accelerate.utils import send_to_device

        try:
            for batch in self.accelerator.prepare(loader):
                yield send_to_device(batch, self.device, non_blocking=True)
        except StedmError as error:
            # A worker's error comes with its traceback as text; the message is its last line.
            raise StedmError(str(error).strip().splitlines()[-1].removeprefix("stedm.errors.StedmError: ")) from error

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context for the forward pass, in the precision of the run."""
        return autocast(self._precision, self.device)

    def step(self, loss: torch.Tensor) -> None:
        """Backward; with the last part of a batch also clip, optimizer, average, log, checkpoint."""
        self.backward(loss)
        self.update()

    def backward(self, loss: torch.Tensor) -> None:
        """The first half of `step`: gradients of this part of the batch are added to those of the others."""
        self.scaler.scale(loss / self.machine.accumulate).backward()
        self._loss += loss.detach() / self.machine.accumulate

    def update(self) -> None:
        """The second half of `step`: does nothing before the last part of a batch."""
        self.part = (self.part + 1) % self.machine.accumulate
        if self.part:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._lr_factor(self.step_done)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not self.scaler.is_enabled():  # which leaves such steps out
            self._loss += 0 * norm  # NaN, so that weights which this step breaks aren't saved
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.network.parameters())
        self.step_done += 1
        self._report()

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[nn.Module]:
        """The bare network with its averaged weights in place (the raw ones where there is no average)."""
        network = self.accelerator.unwrap_model(self.network)
        if self.ema is None:
            yield network
            return
        self.ema.store(network.parameters())
        self.ema.copy_to(network.parameters())
        try:
            yield network
        finally:
            self.ema.restore(network.parameters())

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero."""
        steps, warmup_steps = self.config.steps, self.warmup_steps
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def _report(self) -> None:
        """Log, tell of the progress, checkpoint; what is due."""
        is_last = self.step_done == self.config.steps
        is_checkpoint = self.step_done % self.machine.checkpoint_every_steps == 0 or is_last
        is_logged = self.step_done % _LOG_EVERY_STEPS == 0 or self.step_done == 1 or is_last
        if is_logged or is_checkpoint:
            self._read_loss()
        self._loss.zero_()
        if is_logged and self.accelerator.is_main_process:
            self._log()
        if self.on_progress:
            self.on_progress(self.step_done, self.config.steps, self._last_loss)
        if is_checkpoint:
            self._save()

    def _read_loss(self) -> None:
        """The loss of the step, over all processes; not in every step, for a GPU is waited for here."""
        self._last_loss = float(self.accelerator.reduce(self._loss, "mean"))
        if not math.isfinite(self._last_loss):
            what_to_do = "lower the learning rate"
            if self._precision != "fp32":
                what_to_do += ", or compute exactly (machine.precision=fp32)"
            raise StedmError(
                f"{self.folder}: the loss or its gradients became {self._last_loss} by step {self.step_done}; "
                f"{what_to_do}"
            )

    def _log(self) -> None:
        row = {
            "step": self.step_done,
            "images_seen": self.images_seen,
            "loss": self._last_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
        }
        with writing(self._metrics_path), self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.tracker.log({name: value for name, value in row.items() if name != "step"}, self.step_done)

    @property
    def _metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def _checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def _save(self) -> None:
        target = self.folder / "checkpoints" / f"step-{self.step_done:08d}"
        if self.accelerator.is_main_process:
            save_checkpoint(target, self.step_done, *self._state)
            kept = [folder for folder in self._checkpoints if folder <= target][-_KEEP_CHECKPOINTS:]
            for old in set(self._checkpoints) - set(kept):  # those behind this one were damaged
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    @property
    def _state(self) -> tuple[nn.Module, torch.optim.Optimizer, "EMAModel | None", torch.amp.GradScaler]:
        return self.accelerator.unwrap_model(self.network), self.optimizer, self.ema, self.scaler

    def _resume(self) -> None:
        self.step_done = self._load_newest()
        rows = [row for row in self._logged() if row["step"] <= self.step_done]
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            # What was logged after the checkpoint will be logged again.
            write_text(self._metrics_path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._seconds_before = rows[-1]["seconds"] if rows else 0.0
        self._started = time.monotonic()
        if self.on_progress and self.step_done:
            self.on_progress(self.step_done, self.config.steps, math.nan)

    def _load_newest(self) -> int:
        """The step of the newest checkpoint that is whole, which is loaded; 0 = none, the beginning."""
        say = Reporter(quiet=not self.accelerator.is_main_process).say
        checkpoints = self._checkpoints
        while checkpoints:
            newest = checkpoints.pop()
            try:
                return load_checkpoint(newest, *self._state)
            except DamagedCheckpointError as error:
                instead = f"goes on from {checkpoints[-1].name}" if checkpoints else "training begins anew"
                say(f"{error}; {instead}")
        return 0

    def _logged(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; lines that a kill or a full disk has cut off are left out."""
        if not self._metrics_path.is_file():
            return []
        rows = []
        for line in self._metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict) and _is_number(row.get("step"), row.get("seconds"))]

    def _refuse_unequal_parts(self) -> None:
        batch, parts, processes = self.config.batch, self.machine.accumulate, self.accelerator.num_processes
        if batch % (parts * processes):
            raise StedmError(
                f"{self.folder}: {batch} images of a batch can't be divided into {parts} equal parts "
                f"(machine.accumulate) of {processes} processes; change batch or accumulate"
            )


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def resolve_workers(workers: int | None, device: torch.device, processes: int = 1) -> int:
    """How many processes read samples ahead: as configured, or (None) a few beside a GPU and none on a CPU, where they
    would take the network's cores.

    Raises:
        StedmError: some are asked for where processes can't be forked.
    """
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    if workers is None:
        cores = (os.cpu_count() or 1) // processes
        return min(_WORKERS_PER_GPU, cores - 1) if device.type == "cuda" and can_fork and cores > 1 else 0
    if workers and not can_fork:
        raise StedmError(f"workers: {workers}: processes can't be forked on this system; set it to 0")
    return workers
