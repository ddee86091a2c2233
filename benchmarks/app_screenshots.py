"""Pictures of `stedm app` for the pages, taken in Debian's Chromium.

    stedm run configs/app_screenshots.yaml -o runs/app
    python benchmarks/app_screenshots.py runs/app -o docs/app

Needs the extra `app`, Playwright and /usr/bin/chromium. The slide is a phantom of a test patient of the run.
"""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from stedm.app.opened import open_folder
from stedm.app.server import App, listen, make_app
from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide

SIZE = {"width": 1366, "height": 650}
"""What a browser leaves of a small laptop's 1,366 x 768."""
SLIDE_PX = (2400, 1500)
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@contextmanager
def served(run: Path, slide: Path) -> Iterator[str]:
    """The app on a free port; its address."""
    app, listening = App(open_folder(run), [slide]), listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(app, "shown"), log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/?token=shown"
    server.should_exit = True
    thread.join()
    app.close()


def shrink(path: Path) -> None:
    """256 colours: a third of the bytes, and no difference to see."""
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def paint(page: Page) -> None:
    """Press Paint and wait."""
    before = page.get_attribute("#image-frame", "data-painted")
    page.click("#go")
    page.wait_for_selector(f"#image-frame[data-painted]:not([data-painted='{before}'])")
    page.wait_for_selector("#go:text('Paint')")


def paint_tab(page: Page, patients: list[int]) -> None:
    """The same layout in several styles, then one with a stroke of the brush."""
    page.wait_for_selector("#paint[data-ready]")
    page.click("#layout-choose")
    page.locator("#picker .thumbs button").nth(3).click()
    page.wait_for_selector("#layout-note:text('of ')")
    for patient in patients:
        page.locator("#style-patient .thumbs > *").nth(patient).click()
        paint(page)
    box = page.locator("#layout").bounding_box()
    page.keyboard.press("1")
    page.mouse.move(box["x"] + 0.12 * box["width"], box["y"] + 0.82 * box["height"])
    page.mouse.down()
    for x, y in ((0.3, 0.9), (0.5, 0.86), (0.62, 0.74)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
    page.mouse.up()
    paint(page)
    page.mouse.move(2, 2)


def run_tab(page: Page, patient: int) -> None:
    """A patient of the plot, and what is painted in its style."""
    page.click("#tab-run")
    page.wait_for_selector("#run[data-ready]")
    page.locator("#plot .patient").nth(patient).click()
    page.wait_for_selector("#patient[data-ready]")


def slide_tab(page: Page) -> None:
    """The slide under its segmentation."""
    page.click("#tab-slide")
    page.wait_for_selector("#slide[data-ready]")
    page.click("#segment")
    page.wait_for_selector("#areas table")
    page.wait_for_selector("#viewer[data-pending='0']")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--patients", type=int, nargs="+", default=[1, 4, 7, 10], help="styles in the Paint tab")
    parser.add_argument("--patient", type=int, default=2, help="place in the plot of the Run tab")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    phantom: Any = open_folder(given.run).config.data.phantom
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        slide = Path(folder) / "T00.svs"
        write_phantom_slide(draw_phantom_slide(phantom, "test", 0, SLIDE_PX), slide)
        with served(given.run, slide) as address:
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(300_000)
            page.goto(address)
            steps = {
                "paint": lambda: paint_tab(page, given.patients),
                "run": lambda: run_tab(page, given.patient),
                "slide": lambda: slide_tab(page),
            }
            for name, step in steps.items():
                step()
                page.wait_for_timeout(500)
                page.screenshot(path=given.output / f"{name}.png")
                shrink(given.output / f"{name}.png")
                print(given.output / f"{name}.png", flush=True)
            browser.close()


if __name__ == "__main__":
    main()
