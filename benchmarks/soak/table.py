"""The table of what was tried, and its summary."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {
    "kills": "killed (SIGKILL) and run again",
    "faults": "full disk, read-only folder",
    "leakage": "what must not be seen, replaced",
    "memory": "memory over many steps",
    "fuzz": "mutated inputs",
}

BAD = ("traceback", "hang", "memory", "long", "died", "silent")
"""Classes of mutated inputs that are not as they should be."""


def summary(rows: Iterable[Mapping[str, Any]], good: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Counts by kind, group and class, figures, and each finding once with how often it came."""
    kinds: dict[str, Any] = defaultdict(
        lambda: {"tried": 0, "good": 0, "seconds": 0.0, "classes": Counter(), "groups": {}}
    )
    findings: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        kind, counts = kinds[row["kind"]], Counter(row["counts"])
        group = kind["groups"].setdefault(row["group"], {"tried": 0, "good": 0, "classes": Counter(), "figures": {}})
        n_good = sum(counts[name] for name in good[row["kind"]])
        for part in (kind, group):
            part["tried"] += counts.total()
            part["good"] += n_good
            part["classes"] += counts
        group["figures"] |= row["figures"]
        kind["seconds"] = round(kind["seconds"] + row["seconds"], 1)
        for found in row["findings"]:
            key = (row["kind"], row["group"], found["class"], found["place"].split(" (")[0])
            findings.setdefault(key, {**found, "times": 0})["times"] += 1
    return {
        "kinds": {name: kinds[name] for name in NAMES if name in kinds},
        "findings": sorted(findings.values(), key=lambda found: (found["class"], -found["times"])),
    }


def lines(made: Mapping[str, Any]) -> list[str]:
    """The table of docs/reliability.md: a row a kind and, of kills and memory, a row a stage."""
    out = ["| tried | times | as it should be | else |", "|---|---:|---:|---|"]
    for name, kind in made["kinds"].items():
        out.append(_line(f"**{NAMES[name]}**", kind, name))
        if name in ("kills", "memory"):
            out += [_line(f"– {group}", values, name) for group, values in kind["groups"].items()]
    return out


def readers(made: Mapping[str, Any]) -> list[str]:
    """The table of mutated inputs, a row a reader."""
    kind = made["kinds"].get("fuzz", {"groups": {}})
    names = ("refused", "unharmed", "changed", *BAD)
    out = ["| reader | tried | " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) + 1)]
    rows = [*kind["groups"].items(), ("**all**", kind)] if kind["groups"] else []
    for group, values in rows:
        cells = [str(values["classes"].get(name, 0)) for name in names]
        out.append(f"| {group} | {values['tried']} | " + " | ".join(cells) + " |")
    return out


def _line(title: str, values: Mapping[str, Any], kind: str) -> str:
    rest = {name: n for name, n in values["classes"].items() if n}
    if kind == "fuzz":
        told = ", ".join(
            f"{name} {rest.get(name, 0)}" for name in ("traceback", "hang", "memory", "long", "died", "silent")
        )
    elif kind == "memory" and "mb_per_1000" in values.get("figures", {}):
        told = f"{values['figures']['mb_per_1000']:+.2f} MB per 1,000"
    elif values["good"] == values["tried"]:
        told = ""
    else:
        told = ", ".join(f"{name} {n}" for name, n in rest.items())
    return f"| {title} | {values['tried']:,} | {values['good']:,} | {told} |"


def findings(made: Mapping[str, Any], most: int = 20) -> list[str]:
    """What is not as it should be, the most frequent first."""
    found = sorted(made["findings"], key=lambda each: -each["times"])
    out = [
        f"- {each['class']} ({each['times']}): `{each['trial']}` {each['place']} {' '.join(each['text'].split())[:150]}"
        for each in found[:most]
    ]
    return out + ([f"- and {len(found) - most} more in summary.json"] if found[most:] else []) or ["Nothing."]


def blocks(made: Mapping[str, Any]) -> dict[str, list[str]]:
    """What stands on the pages between `<!-- NAME -->` and `<!-- /NAME -->`."""
    return {"table": lines(made), "readers": readers(made), "findings": findings(made)}


def filled(page: str, made: Mapping[str, Any]) -> str:
    """A page with the tables of a summary in it."""
    for name, content in blocks(made).items():
        head, tail = f"<!-- {name} -->", f"<!-- /{name} -->"
        if head in page:
            before, after = page.split(head)[0], page.split(tail)[1]
            page = "\n".join([before + head, *content, tail + after])
    return page
