"""`stedm plan`: the plan of a configuration without a run folder."""

import pandas as pd

from stedm.config import RunConfig
from stedm.data.squares import in_squares
from stedm.errors import StedmError
from stedm.experiment.resolve import annotated_part, open_dataset, resolve
from stedm.synthesis.plan import make_plan


def plan_images(config: RunConfig, n: int) -> pd.DataFrame:
    """The plan of the first round for `n` images: annotated layouts in the styles of unannotated patients.

    Predicted layouts of later rounds need trained segmenters: their plan is `plan.parquet` of a run folder.

    Raises:
        StedmError: the configuration asks for a phantom, which would lie in a run folder.
    """
    if config.data.path is None:
        raise StedmError("plan: make the phantom first (`stedm data phantom OUT`), then give it as data.path")
    config, dataset = resolve(config), open_dataset(config)
    return make_plan(
        config.synthesis.model_copy(update={"n_images": n}),
        in_squares(annotated_part(dataset, config)),
        in_squares(dataset.split("unlabeled")),
        seed=config.seed,
        image_px=config.data.side,
    )
