"""How far drawn layouts are from annotated ones, per kind and category: prints the tables of results/layout_prior and
writes its figure.

python benchmarks/layout_prior.py [EBHI_SEG_FOLDER]        default ../shared/data/ebhi_seg; left out where absent
"""

import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np

from stedm.config import PhantomConfig
from stedm.data.folder import DatasetFolder
from stedm.io.files import replacing
from stedm.layout.measures import compare_layouts
from stedm.layout.prior import LayoutPrior
from stedm.layout.recipe import KINDS
from stedm.phantom.cohort import make_phantom

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGE_PX, N_DRAWN, SEED = 64, 200, 0
SHOWN = {"phantom, H&E": ["grade2"], "EBHI-Seg": ["polyp", "lgin", "adenoca"]}
RESULTS = Path(__file__).parents[1] / "results"


def rows_of(name: str, prior: LayoutPrior) -> list[list[str]]:
    """For each category and kind: data, category, kind, distance of fractions, floor, distances of areas, floors."""
    categories = prior.annotated.table["category"].to_numpy()
    rows = []
    for category in sorted(set(categories)):
        real = prior.layouts[categories == category]
        for kind in KINDS:
            d = compare_layouts(prior.draw_many(kind, category, N_DRAWN, SEED), real, prior.n_classes)
            areas, floors = (" / ".join(f"{value:.2f}" for value in d[key]) for key in ("log_area", "log_area_floor"))
            means = [f"{np.nanmean(d[key]):.3f}" for key in ("fraction", "fraction_floor")]
            rows.append([name, f"{category} ({len(real)})", kind, *means, areas, floors])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """Two tables, of class fractions and of component areas: a row a category, a column a kind."""
    head = ["data, category (layouts)", *KINDS, "floor"]
    tables = []
    for distance, floor in ((3, 4), (5, 6)):
        lines = {}
        for row in rows:
            lines.setdefault(f"{row[0]}, {row[1]}", [row[floor]]).insert(-1, row[distance])
        cells = [head, ["---"] * len(head), *([name, *line] for name, line in lines.items())]
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in cells))
    return "\n\n".join(tables)


def save_image(priors: dict[str, LayoutPrior], path: Path, columns: int = 12) -> None:
    """A row of layouts for each kind, blocks for the categories of `SHOWN`."""
    blocks = [(name, category) for name in priors for category in SHOWN[name]]
    figure, axes = plt.subplots(
        len(blocks) * len(KINDS), columns, figsize=(columns * 0.8, len(blocks) * len(KINDS) * 0.8 + 0.3)
    )
    for block, (name, category) in enumerate(blocks):
        prior = priors[name]
        for number, kind in enumerate(KINDS):
            line = axes[block * len(KINDS) + number]
            for axis, layout in zip(line, prior.draw_many(kind, category, columns, SEED + 1), strict=True):
                axis.imshow(layout, cmap="viridis", vmin=0, vmax=prior.n_classes - 1, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
            label = "annotated" if kind == "resample" else kind
            line[0].set_ylabel(f"{name}\n{category}\n{label}", rotation=0, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=0.12, right=0.995, top=0.995, bottom=0.005, wspace=0.05, hspace=0.05)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80)
    plt.close(figure)


def main() -> None:
    start = time.perf_counter()
    ebhi = Path(sys.argv[1] if sys.argv[1:] else RESULTS.parents[1] / "shared" / "data" / "ebhi_seg")
    with tempfile.TemporaryDirectory() as name:
        config = PhantomConfig(stain="he", patients={"train": 6, "unlabeled": 0, "val": 0, "test": 0})
        make_phantom(config, Path(name) / "data")
        datasets = {"phantom, H&E": DatasetFolder.open(Path(name) / "data")}
        if ebhi.is_dir():
            datasets["EBHI-Seg"] = DatasetFolder.open(ebhi)
        priors = {name: LayoutPrior.fit(dataset.split("train"), IMAGE_PX) for name, dataset in datasets.items()}
        table = markdown([row for name, prior in priors.items() for row in rows_of(name, prior)])
    print(table)
    save_image(priors, RESULTS / "layout_prior" / "layouts.png")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
