"""The label budget: which of the annotated patients or images of a dataset count as annotated."""

import numpy as np

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.seeds import numpy_generator


def choose_annotated(dataset: DatasetFolder, n_patients: int | None, draw: int) -> list[str]:
    """Patients of split train that count as annotated: in turn one of each category, in random order.

    A patient of several categories counts under its most frequent one. A pure function of `draw`, and nested: the
    choice for n patients is the beginning of the choice for n + 1. `None` = all patients that have a mask.
    Raises `StedmError` if there are fewer than `n_patients`.
    """
    train = dataset.split("train").table
    annotated = train[train["mask_file_name"] != ""]
    # mode() is sorted, so equal counts go to the alphabetically first category.
    category_of = annotated.groupby("patient_id")["category"].agg(lambda values: values.mode().iloc[0])
    if n_patients is not None and not 1 <= n_patients <= len(category_of):
        raise StedmError(
            f"{dataset.root}: {n_patients} annotated patients asked for, split train has {len(category_of)}; "
            "change annotated_patients"
        )
    generator = numpy_generator(draw, "annotated")
    categories = generator.permutation(sorted(set(category_of))).tolist()
    queues = [generator.permutation(sorted(category_of.index[category_of == name])).tolist() for name in categories]
    turns = max((len(queue) for queue in queues), default=0)
    order = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return order[:n_patients]


def choose_annotated_images(dataset: DatasetFolder, n_per_category: int, draw: int) -> np.ndarray:
    """Rows of the images of split train that count as annotated: `n_per_category` of each category, at random.

    The k-shot budget of the paper's natural-image experiment, where an image is a patient of its own. A pure function
    of `draw`, and nested: the choice for k images is part of the choice for k + 1.
    Raises `StedmError` where a category has fewer annotated images.
    """
    table = dataset.table
    candidates = table[(table["split"] == "train") & (table["mask_file_name"] != "")].sort_values("image_file_name")
    chosen = []
    for category, rows in candidates.groupby("category"):
        if len(rows) < n_per_category:
            raise StedmError(
                f"{dataset.root}: {n_per_category} annotated images a category asked for, {category!r} has "
                f"{len(rows)}; lower annotated_per_category"
            )
        order = numpy_generator(draw, "annotated pictures", category).permutation(rows.index.to_numpy())
        chosen.append(order[:n_per_category])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.intp)
