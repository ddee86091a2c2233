"""Which patients are train, unlabeled, val and test, where the source doesn't say it in a way that holds."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from stedm.errors import StedmError
from stedm.io.tables import SPLITS, alike
from stedm.seeds import numpy_generator

PROPOSE = "propose"


def parse_split(text: str | None) -> tuple[int, int, int, int] | None:
    """`--split 4/6/2/4`: patients of train, unlabeled, val and test; None for `propose` and where it isn't given."""
    if text is None or text == PROPOSE:
        return None
    parts = text.split("/")
    if len(parts) != len(SPLITS) or not all(part.isascii() and part.isdigit() for part in parts) or parts[0] == "0":
        raise StedmError(
            f"--split {text}: give {PROPOSE}, or the numbers of patients of {'/'.join(SPLITS)}, such as 4/6/2/4"
        )
    train, unlabeled, val, test = map(int, parts)
    return train, unlabeled, val, test


def propose_split(
    patients: Mapping[str, tuple[str, bool]], numbers: tuple[int, int, int, int] | None, seed: int
) -> dict[str, str]:
    """The split of each patient, balanced over categories, drawn by `seed`.

    Patients without a mask are unlabeled. Of the others a third to a half is scored, a tenth is val; where few patients
    have no mask, more than half of the rest is held back as unlabeled. Ids that look alike go together.

    Args:
        patients: category, and whether there are masks, by patient.
        numbers: patients of train, unlabeled, val and test; unlabeled counts those without masks.

    Raises:
        StedmError: there are not as many annotated patients.
    """
    groups: dict[tuple, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        groups[alike(patient)].append(patient)
    annotated = {key: names for key, names in groups.items() if any(patients[name][1] for name in names)}
    bare = len(groups) - len(annotated)
    wanted = _numbers(len(annotated), bare) if numbers is None else _checked(numbers, len(annotated), bare)
    categories = {key: patients[names[0]][0] for key, names in annotated.items()}
    split_of = dict.fromkeys(groups, "unlabeled") | _dealt(categories, wanted, seed)
    return {name: split_of[key] for key, names in groups.items() for name in names}


def _numbers(annotated: int, bare: int) -> dict[str, int]:
    """How many annotated patients go where."""
    if annotated < 2:
        raise StedmError(
            f"masks are of {annotated} patient alone, and one to learn from and one to score is the least; add masks "
            "of another, or say with --patients whose images they are"
        )
    # Evidence begins with six scored patients; of the others few are annotated, as in the experiments of the paper.
    test = max(round(0.35 * annotated), min(6, annotated // 2))
    val = round(0.1 * annotated)
    rest = annotated - test - val
    train = math.ceil(0.4 * rest) if bare * 2 < annotated and rest > 1 else rest
    return {"train": train, "unlabeled": rest - train, "val": val, "test": test}


def _checked(numbers: tuple[int, int, int, int], annotated: int, bare: int) -> dict[str, int]:
    train, unlabeled, val, test = numbers
    wanted = {"train": train, "unlabeled": unlabeled - bare, "val": val, "test": test}
    if wanted["unlabeled"] < 0 or sum(wanted.values()) != annotated:
        raise StedmError(
            f"--split {'/'.join(map(str, numbers))}: makes {sum(numbers)} patients, and there are {annotated} with "
            f"masks and {bare} without, who are unlabeled; give numbers that make {annotated + bare}"
        )
    return wanted


def _dealt(categories: Mapping[tuple, str], wanted: Mapping[str, int], seed: int) -> dict[tuple, str]:
    """Deal patients, category by category, to whichever split is furthest behind: each gets its part of each."""
    generator = numpy_generator(seed, "import", "split")
    queue = []
    # Rare categories first: they are what train may lack.
    for category, _ in sorted(Counter(categories.values()).items(), key=lambda item: (item[1], item[0])):
        of_category = sorted(key for key in categories if categories[key] == category)
        queue += [of_category[i] for i in generator.permutation(len(of_category))]
    given: Counter[str] = Counter()
    split_of = {}
    for number, key in enumerate(queue, start=1):
        behind = {s: n * number / len(queue) - given[s] for s, n in wanted.items() if given[s] < n}
        split_of[key] = max(behind, key=behind.__getitem__)
        given[split_of[key]] += 1
    return split_of
