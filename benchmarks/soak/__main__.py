"""Try what could break, for hours if need be; run it again to go on (docs/reliability.md).

python -m benchmarks.soak --minutes 30            all kinds, each in its turn
python -m benchmarks.soak --only fuzz kills       some of them
python -m benchmarks.soak --match kills/evaluate   those whose name begins so
python -m benchmarks.soak --repeat fuzz/model/17  one thing that was found, with its traceback
python -m benchmarks.soak --minutes 0             the table of what was done
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import table
from .child import warm_up
from .trials import SEED, Log, Trial, source_code
from .workshop import Workshop

KINDS = ("kills", "faults", "leakage", "memory", "fuzz")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "reliability" / "summary.json"
PAGES = (ROOT / "docs" / "reliability.md", RESULTS.with_name("README.md"))
"""Where the tables stand; filled when the summary is written where it belongs."""


def modules(names: Sequence[str]) -> dict[str, Any]:
    return {name: importlib.import_module(f".{name}", __package__) for name in names}


def left(kinds: dict[str, Any], done: set[str], match: Sequence[str] = ("",)) -> list[Trial]:
    """Trials that are not done and whose name begins as one of `match`, all kinds getting done together."""
    shares = []
    for name, kind in kinds.items():
        trials = list(kind.trials(SEED))
        shares += [((i + 1) / len(trials), name, trial) for i, trial in enumerate(trials) if str(trial) not in done]
    in_turn = [trial for *_, trial in sorted(shares, key=lambda share: share[:2])]
    return [trial for trial in in_turn if str(trial).startswith(tuple(match))]


def soak(kinds: dict[str, Any], log: Log, workshop: Workshop, minutes: float, match: Sequence[str] = ("",)) -> None:
    """Do trials until all are done or the time is over."""
    until, waiting = time.monotonic() + 60 * minutes, left(kinds, log.done(), match)
    print(f"{len(waiting)} trials left; source code {source_code()}", flush=True)
    for number, trial in enumerate(waiting, 1):
        if time.monotonic() > until:
            break
        started = time.monotonic()
        outcome = kinds[trial.kind].run(trial, workshop)
        seconds = time.monotonic() - started
        log.note(trial, outcome, seconds)
        counts = ", ".join(f"{name} {n}" for name, n in outcome.counts.items())
        print(f"{number}/{len(waiting)} {trial}: {counts} ({seconds:.1f} s)", flush=True)
        for found in outcome.findings[:3]:
            print(f"    {found['class']}: {found['trial']} {found['place']} {found['text'][:160]}", flush=True)


def show(made: dict[str, Any]) -> None:
    print("\n" + "\n".join(table.lines(made)) + "\n\n" + "\n".join(table.readers(made)))
    for found in made["findings"]:
        print(f"{found['class']} x {found['times']}: {found['trial']} {found['place']}: {found['text'][:200]}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--match", nargs="+", default=[""], metavar="NAME", help="trials whose name begins so")
    parser.add_argument("--repeat", metavar="TRIAL", help="as a finding names it")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "soak", help="where trials work")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="SUMMARY.json")
    asked = parser.parse_args(arguments)
    workshop, log = Workshop(asked.folder), Log(asked.folder / "trials.jsonl")
    warm_up()
    workshop.prepare()
    if asked.repeat:
        kind, rest = asked.repeat.split("/", 1)
        group, number = rest.rsplit("/", 1)
        module, trial = modules([kind])[kind], Trial(kind, group, int(number))
        print(module.repeat(trial, workshop) if hasattr(module, "repeat") else module.run(trial, workshop))
        return
    soak(modules(asked.only), log, workshop, asked.minutes, asked.match)
    made = table.summary(log.rows(), {name: module.GOOD for name, module in modules(KINDS).items()})
    made = {"source_code": source_code(), "seed": SEED, "left": len(left(modules(KINDS), log.done())), **made}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if asked.output == RESULTS:
        for page in PAGES:
            page.write_text(table.filled(page.read_text(encoding="utf-8"), made), encoding="utf-8")
    show(made)
    sys.exit(1 if made["findings"] else 0)


if __name__ == "__main__":
    main()
