"""The pages in Debian's Chromium, as a user meets them. Nothing but the app is asked: see the fixture `page`."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from stedm.config import SlideSegmentationConfig
from stedm.segmentation.whole_slide import segment_slide
from stedm.slides.slide import Slide


def paint(page) -> np.ndarray:
    """Press Paint and wait; the image."""
    before = page.get_attribute("#image-frame", "data-painted")
    page.click("#go")
    page.wait_for_selector(f"#image-frame[data-painted]:not([data-painted='{before}'])")
    page.wait_for_selector("#go:text('Paint')")
    return shown(page, f"/api/painted/{page.get_attribute('#image-frame', 'data-painted')}/image.png")


def alike(image: np.ndarray, other: np.ndarray) -> bool:
    """But for rounding: two styles that are embedded together differ in their last bits."""
    return bool(np.abs(image.astype(int) - other).max() <= 2)


def shown(page, path: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(fetched(page, path))))


def fetched(page, path: str) -> bytes:
    return page.request.get(path if "://" in path else page.url.split("/#")[0] + path).body()


def choose_file(page, button: str, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


@pytest.fixture
def ready(page):
    page.wait_for_selector("#paint[data-ready]")
    return page


def test_painting_in_the_layout_changes_the_image_and_keeps_the_layout(ready, layout_of):
    before, first = layout_of(ready), paint(ready)
    assert np.array_equal(layout_of(ready), before)
    box = ready.locator("#layout").bounding_box()
    ready.keyboard.press("3")
    ready.mouse.move(box["x"] + 40, box["y"] + 40)
    ready.mouse.down()
    ready.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
    ready.mouse.up()
    drawn = layout_of(ready)
    assert not np.array_equal(drawn, before)
    second = paint(ready)
    assert not np.array_equal(second, first)
    assert np.array_equal(layout_of(ready), drawn)
    number = ready.get_attribute("#image-frame", "data-painted")
    mask = np.frombuffer(fetched(ready, f"/api/painted/{number}/mask"), np.uint8)
    from stedm.io.images import class_palette

    colours = np.frombuffer(class_palette(), np.uint8).reshape(256, 3)
    assert np.array_equal(colours[mask], drawn.reshape(-1, 4)[:, :3])
    assert ready.text_content("#seen-note").startswith("real+stain: ")
    assert ready.locator("#gallery button").count() == 2
    ready.locator("#gallery button").last.click()
    assert np.array_equal(layout_of(ready), before)


def test_another_style_changes_the_look(ready):
    first = paint(ready)
    ready.locator("#style-patient .thumbs > *").nth(1).click()
    second = paint(ready)
    assert not np.array_equal(second, first)
    ready.check("input[name=style][value=mix]", force=True)
    ready.evaluate("() => { document.querySelector('#mix').value = 0; }")
    assert alike(paint(ready), first)
    ready.evaluate("() => { document.querySelector('#mix').value = 1; }")
    assert alike(paint(ready), second)
    assert not alike(first, second)


def test_an_uploaded_style_and_a_download(ready):
    file = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 30, 90)).save(file, "PNG")
    ready.check("input[name=style][value=images]", force=True)
    choose_file(ready, "#style-upload", "own.png", file.getvalue())
    ready.wait_for_selector("#chosen img")
    image = paint(ready)
    with ready.expect_download() as download:
        ready.click("#download")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert np.array_equal(np.array(Image.open(io.BytesIO(archive.read("image.png")))), image)
        assert json.loads(archive.read("row.json"))["style_image_file_names"] == ""


def test_a_layout_is_taken_from_the_data_and_varied(ready, layout_of):
    ready.click("#layout-choose")
    ready.locator("#picker .thumbs button").first.click()
    ready.wait_for_selector("#layout-note:text('of A00')")
    taken = layout_of(ready)
    ready.click("#layout-prior")
    ready.wait_for_selector("#layout-note:text('after')")
    assert not np.array_equal(layout_of(ready), taken)


def test_the_brush_works_with_keys_alone(ready, layout_of):
    before = layout_of(ready)
    ready.focus("#layout")
    for key in ("2", "]", "ArrowLeft", "ArrowDown", "Space"):
        ready.keyboard.press(key)
    assert ready.is_checked("#brushes input[value='1']")
    drawn = layout_of(ready)
    ready.keyboard.press("1")
    ready.keyboard.press("Space")
    assert not np.array_equal(layout_of(ready), drawn) or not np.array_equal(drawn, before)
    ready.keyboard.press("Control+z")
    ready.keyboard.press("Control+z")
    assert np.array_equal(layout_of(ready), before)
    ready.keyboard.press("Control+Enter")
    ready.wait_for_selector("#image-frame[data-painted]")


def test_a_bad_upload_is_told_in_words_and_changes_nothing(ready, layout_of):
    before = layout_of(ready)
    ready.click("#layout-choose")
    choose_file(ready, "#picker-upload", "notes.png", b"this is no image")
    ready.wait_for_selector("#alert:not([hidden])")
    assert ready.inner_text("#alert span").startswith("notes.png: not a readable PNG mask")
    assert np.array_equal(layout_of(ready), before)
    ready.click("#alert button")
    assert ready.is_hidden("#alert")
    ready.check("input[name=style][value=images]", force=True)
    ready.click("#go")
    ready.wait_for_selector("#alert span:text('no style is chosen')")


def test_a_patient_is_shown_with_what_two_arms_saw(page):
    page.click("#tab-run")
    page.wait_for_selector("#run[data-ready]")
    assert page.inner_text("#name") == "tiny <b>run</b>"
    assert page.locator("#plot .patient").count() == 3
    page.locator("#plot .patient").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#patient[data-ready]")
    cases = page.locator("#patient .case")
    assert cases.count() == 2
    assert cases.first.locator("figcaption").all_inner_texts() == [
        "image",
        "truth",
        "real+stain",
        "real+stain+synthetic",
    ]
    page.click("text=Paint four layouts in its style")
    page.wait_for_selector("#patient .pair >> nth=3")
    page.click(".chips .doubted")
    page.wait_for_selector("#patient[data-ready^='U']")
    assert page.locator("#patient .case").first.locator("figcaption").all_inner_texts()[1] == "real+stain"
    assert page.locator("#patient .pair").count() > 0


def test_a_slide_is_segmented_and_overlaid(page, served, slide, tmp_path):
    page.click("#tab-slide")
    page.wait_for_selector("#slide[data-ready]")
    page.wait_for_selector("#viewer[data-pending='0']")
    bare = page.locator("#viewer").screenshot()
    page.click("#segment")
    page.wait_for_selector("#areas table")
    page.wait_for_selector("#viewer[data-pending='0']")
    assert page.locator("#viewer").screenshot() != bare
    assert page.locator("#areas tbody tr").count() == 4
    with page.expect_download() as download:
        page.click("#areas a")
    segmenter = served.app.opened.segmenter("real+stain+synthetic")
    how = SlideSegmentationConfig(label_map=True)
    segment_slide(segmenter.network, segmenter.info, Slide.open(slide), tmp_path / "a.geojson", how)
    assert json.loads(download.value.path().read_text())["features"] == _features(tmp_path / "a.geojson")
    labels = np.array(served.app.shelf.overlay(0, "real+stain+synthetic").labels)
    import tifffile

    assert np.array_equal(labels, tifffile.imread(tmp_path / "a.ome.tif"))
    page.focus("#viewer")
    before = page.locator("#viewer").screenshot()
    page.keyboard.press("+")
    page.wait_for_selector("#viewer[data-pending='0']")
    assert page.locator("#viewer").screenshot() != before


def _features(path) -> list:
    return json.loads(path.read_text())["features"]


def test_a_slide_that_is_none_is_told_in_words(page):
    page.click("#tab-slide")
    page.wait_for_selector("#slide[data-ready]")
    choose_file(page, "#slide-upload", "broken.svs", b"no slide")
    page.wait_for_selector("#alert span:text('broken.svs')")
    assert "/tmp" not in page.inner_text("#alert span")


@pytest.mark.parametrize("width", [1366, 400])
def test_no_page_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 650})
    for tab in ("paint", "run", "slide"):
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f"#{tab}[data-ready]")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, tab
