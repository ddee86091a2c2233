"""A tiny run, opened in the app and served; a page in Debian's Chromium where it is installed."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from stedm.app.opened import open_folder
from stedm.config import PhantomConfig, parse_config
from stedm.data.folder import DatasetFolder
from stedm.experiment.agreement import write_agreement
from stedm.experiment.experiment import Experiment
from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide
from stedm.progress import Reporter

TOKEN = "a-token-for-tests"
ARMS = ["real+stain", "real+stain+synthetic"]


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_run):
    """A complete run folder on six phantom patients; masks of the unlabeled ones are there, as in a real cohort."""
    phantom = {
        "stain": "he",
        "image_px": 32,
        "patients": {"train": 2, "unlabeled": 2, "val": 1, "test": 3},
        "images_per_patient": 2,
    }
    values = tiny_run({"phantom": phantom}, arms=ARMS)
    values |= {"name": "tiny <b>run</b>", "rounds": {"number": 1, "labels": None}}
    folder = tmp_path_factory.mktemp("app") / "run"
    Experiment(parse_config(values, "test"), folder, Reporter(quiet=True)).run()
    unlabeled = DatasetFolder.open(folder / "data").split("unlabeled")
    table = pd.DataFrame({"patient_id": unlabeled.patients(), "category": "", "agreement": [0.2, 0.9]})
    write_agreement(table.assign(sure_fraction=1.0), folder / "agreement.csv")
    return folder


@pytest.fixture(scope="session")
def slide(tmp_path_factory):
    """A slide with a pyramid, of tissue with glass around it."""
    pytest.importorskip("tifffile")
    path = tmp_path_factory.mktemp("slides") / "slide one.svs"
    write_phantom_slide(draw_phantom_slide(PhantomConfig(stain="he"), "test", 0, (420, 300), unit_px=256), path)
    return path


@pytest.fixture(scope="session")
def served(run, slide):
    """The app on a free port: `address` (with the token), `app`."""
    uvicorn = pytest.importorskip("uvicorn")
    from stedm.app.server import App, listen, make_app

    app, listening = App(open_folder(run), [slide]), listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(app, TOKEN), log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield SimpleNamespace(address=address, entry=f"{address}/?token={TOKEN}", app=app, run=run)
    server.should_exit = True
    thread.join(10)
    listening.close()
    app.close()


@pytest.fixture
def page(browser, served):
    """A page of a small laptop, with the token; nothing but the app may be asked, and no script may fail."""
    context = browser.new_context(viewport={"width": 1366, "height": 650}, accept_downloads=True)
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if _is_ours(request.url, served.address) else wrong.append(request.url))
    page.goto(served.entry)
    yield page
    context.close()
    assert wrong == []


def _is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@pytest.fixture
def opened(run):
    return open_folder(run)


@pytest.fixture
def layout_of():
    """Function: the pixels of the layout in the page."""

    def read(page) -> np.ndarray:
        return np.array(page.evaluate(_PIXELS, "#layout"), np.uint8)

    return read


_PIXELS = """selector => {
  const canvas = document.querySelector(selector);
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""
