"""What all kinds of trials have in common: a trial, its outcome, and the file that says which are done."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import stedm

SEED = 24
"""Everything that is drawn in a trial is a function of this number and the trial's name."""


@dataclass(frozen=True)
class Trial:
    """One trial: `group` is the row of the table that it counts in, `number` tells it from others of the group."""

    kind: str
    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.group}/{self.number}"


@dataclass
class Outcome:
    """What came of a trial: how many of which class, figures of its own, and what was found, each with its name."""

    counts: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, n: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + n

    def find(self, which: object, name: str, place: str, text: str = "") -> None:
        """Something that is not as it should be: `which` trial, its class, where, and what was said."""
        self.findings.append({"trial": str(which), "class": name, "place": place, "text": text[:400]})


class Kind(Protocol):
    """A module of this package."""

    GOOD: tuple[str, ...]

    def trials(self, seed: int) -> Sequence[Trial]: ...

    def run(self, trial: Trial, workshop: Any) -> Outcome: ...


class Log:
    """The JSON lines of trials that were done. Those of other source code, or another seed, don't count."""

    def __init__(self, path: Path, seed: int = SEED):
        self.path, self.key = path, {"code": source_code(), "seed": seed}

    def rows(self) -> Iterator[dict[str, Any]]:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a killed soak leaves half a line
                    continue
                if all(row.get(name) == value for name, value in self.key.items()):
                    yield row

    def done(self) -> set[str]:
        return {row["trial"] for row in self.rows()}

    def note(self, trial: Trial, outcome: Outcome, seconds: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = {"trial": str(trial), "kind": trial.kind, "group": trial.group, "seconds": round(seconds, 2), **self.key}
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" if self._is_torn() else "")
            file.write(json.dumps({**row, **asdict(outcome)}) + "\n")

    def _is_torn(self) -> bool:
        content = self.path.read_bytes()[-1:] if self.path.is_file() else b""
        return content not in (b"", b"\n")


def source_code() -> str:
    """Names the source code of the package that is tried."""
    root, digest = Path(stedm.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
