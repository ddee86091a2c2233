"""`stedm app` on the command line."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from stedm.app.server import listen
from stedm.cli import main


def test_it_serves_until_ctrl_c_and_writes_nothing_into_the_run(run, slide):
    before = sorted(run.rglob("*"))
    command = [sys.executable, "-m", "stedm", "app", str(run), "--port", "0", "--slides", str(slide)]
    # Shells have processes in the background ignore Ctrl-C.
    own = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **own) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        name, address = process.stdout.readline().strip().split(": ")
        assert name == "tiny <b>run</b>"
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address, timeout=60) as page:
            assert b"<title>stedm</title>" in page.read()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == "Ctrl-C ends it.\n"
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: not a run, and no model; give a folder that `stedm run` has written"),
        (["--slides", "RUN/config.yaml", "RUN"], "config.yaml: not readable as a slide"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, told):
    with pytest.raises(SystemExit):
        main(["app", *(text.replace("RUN", str(run)) for text in arguments)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_port_that_is_taken_is_one_line(run, capsys):
    with listen("127.0.0.1", 0) as taken, pytest.raises(SystemExit):
        main(["app", str(run), "--port", str(taken.getsockname()[1])])
    assert "Address already in use; give another --port, or 0 for any" in capsys.readouterr().err
