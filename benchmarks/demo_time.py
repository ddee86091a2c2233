"""Time of the demo before and after a change: the same demo by two revisions of the source, side by side.

    python benchmarks/demo_time.py BEFORE [AFTER] [-o FILE.json]

BEFORE and AFTER are git revisions (AFTER: HEAD). Both demos run at the same time with one thread each, so that whatever
else the machine does hits both; the ratio is that of their wall times. The environment (torch and so on) is this one's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_STAGE = re.compile(r"^(?P<stage>[\w+ ,-]+): done in (?P<seconds>\d+) s$", re.MULTILINE)


class Demo:
    """`stedm demo` of one revision, in a process of its own."""

    def __init__(self, revision: str, folder: Path):
        self.revision = _git("rev-parse", "--short", revision)
        self.source, self.log = folder / "source", folder / "log.txt"
        _git("worktree", "add", "--detach", str(self.source), revision)
        settings = {"PYTHONPATH": str(self.source / "src"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "stedm.cli", "demo", "-o", str(folder / "run")]
        self._log = self.log.open("w")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, env=os.environ | settings, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder
        )
        self.seconds: float | None = None

    def poll(self) -> bool:
        """Whether it has ended; notes when."""
        if self.seconds is None and self.process.poll() is not None:
            self.seconds = time.monotonic() - self.started
        return self.seconds is not None

    def result(self) -> dict[str, object]:
        """Revision, seconds in all and by stage."""
        text = self.log.read_text()
        if self.process.returncode:
            sys.exit(f"the demo of {self.revision} failed:\n{text[-2000:]}")
        stages: dict[str, int] = {}
        for found in _STAGE.finditer(text):
            name = "segmenters" if found["stage"].startswith("segmenter") else found["stage"].strip()
            stages[name] = stages.get(name, 0) + int(found["seconds"])
        assert self.seconds is not None
        return {"revision": self.revision, "total_s": round(self.seconds, 1), "stages_s": stages}

    def close(self) -> None:
        """Stop it if it still runs, and take the source away again."""
        self.process.kill()
        self.process.wait()
        self._log.close()
        _git("worktree", "remove", "--force", str(self.source))


def compare(before: str, after: str) -> dict[str, object]:
    """Both demos at once; {"before": ..., "after": ..., "ratio": time after / time before}."""
    with tempfile.TemporaryDirectory() as name:
        demos: list[Demo] = []
        try:
            for which, revision in (("before", before), ("after", after)):
                folder = Path(name) / which
                folder.mkdir()
                demos.append(Demo(revision, folder))
            # Both are polled every time: the first to end must not hide when the second did.
            while sum(demo.poll() for demo in demos) < len(demos):
                time.sleep(0.2)
            one, other = (demo.result() for demo in demos)
        finally:
            for demo in demos:
                demo.close()
    return {"before": one, "after": other, "ratio": round(demos[1].seconds / demos[0].seconds, 3)}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the demo before and after a change.")
    parser.add_argument("before", help="git revision")
    parser.add_argument("after", nargs="?", default="HEAD", help="git revision (HEAD)")
    parser.add_argument("-o", dest="output", type=Path, help="also write the figures here, as JSON")
    given = parser.parse_args()
    text = json.dumps(compare(given.before, given.after), indent=2)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
