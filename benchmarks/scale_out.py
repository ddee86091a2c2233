"""Throughput of synthesis on a Ray cluster on this machine: 2 workers against 1, in turns in one run; printed as JSON.

python benchmarks/scale_out.py                 96 images a round, 3 rounds each (about two minutes on two cores)
python benchmarks/scale_out.py -n 32 --rounds 1

The cluster has a head that only schedules and a node of one CPU for each worker. A round is a whole call of
`synthesize`, and so has in it that each worker reads the model and the dataset. Worker processes are there before the
first round. `load_before` says how busy the machine was with other things: two workers can gain no more than it leaves.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

from stedm.config import DenoiserConfig, DiffusionConfig, PhantomConfig, Sampling, StyleConfig, SynthesisConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import make_denoiser
from stedm.phantom.cohort import make_phantom
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan
from stedm.workers.ray_pool import RayPool

IMAGE_PX = 64
STEPS = 12
BATCH = 8
CLASSES = 2
NODE = {"object_store_memory": 80 << 20, "include_dashboard": False}


class LimitedPool(RayPool):
    """At most so many pieces at the same time."""

    workers = 1

    def _slots(self, gpus: int) -> int:
        return min(self.workers, super()._slots(gpus))


def untrained_model(folder: Path) -> StyleDiffusion:
    """Drawing takes as long as with a trained one."""
    codec = PixelCodec(4)
    config = DiffusionConfig(denoiser=DenoiserConfig(channels=[64, 128]), style=StyleConfig(dim=64))
    denoiser = make_denoiser(config, codec, n_classes=CLASSES, seed=0)
    classes = ["stroma", "tumour"]
    model = StyleDiffusion(denoiser, codec, objective="flow", classes=classes, image_px=IMAGE_PX)
    model.save_pretrained(folder)
    return model


def seconds(folder: Path, model: StyleDiffusion, plan, workers: int, name: str) -> float:
    with LimitedPool() as pool:
        pool.workers = workers
        started = time.perf_counter()
        synthesize(model, plan, folder / name, pool=pool, model_folder=folder / "model")
        return time.perf_counter() - started


def measure(folder: Path, n: int, rounds: int) -> dict:
    """Images a second with 1 and with 2 workers: the median of the rounds."""
    phantom = PhantomConfig(patients={"train": 2, "unlabeled": 4, "val": 1, "test": 1}, images_per_patient=4)
    make_phantom(phantom, folder / "data")
    dataset = DatasetFolder.open(folder / "data")
    model = untrained_model(folder / "model")
    settings = SynthesisConfig(n_images=n, batch=BATCH, sampling=Sampling(steps=STEPS))
    plan = make_plan(settings, dataset.split("train"), dataset.split("unlabeled"), image_px=IMAGE_PX)
    load = os.getloadavg()[0]
    seconds(folder, model, plan, 2, "warm-up")
    rates = {1: [], 2: []}
    for number in range(rounds):
        for workers, found in rates.items():
            found.append(n / seconds(folder, model, plan, workers, f"{workers}-{number}"))
    one, two = (statistics.median(found) for found in rates.values())
    return {
        "images_per_second": {"1 worker": round(one, 2), "2 workers": round(two, 2)},
        "ratio": round(two / one, 2),
        "rounds": {f"{workers} workers": [round(rate, 2) for rate in found] for workers, found in rates.items()},
        "images_a_round": n,
        "setting": {"image_px": IMAGE_PX, "steps": STEPS, "batch": BATCH, "threads_a_worker": 1},
        "cpus": os.cpu_count(),
        "load_before": round(load, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=96, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        cluster = Cluster(True, head_node_args={**NODE, "num_cpus": 0})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, **NODE)
            os.environ["RAY_ADDRESS"] = cluster.address
            print(json.dumps(measure(Path(folder) / "work", given.n, given.rounds), indent=2))
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
