"""The server without a browser: who may ask, what is never served, how bad input is told."""

import http.client
import json

import numpy as np
import pytest

from stedm.data.folder import DatasetFolder


@pytest.fixture
def ask(served):
    """Function: status, headers and body of a request; with the cookie unless told otherwise."""
    host = served.address.removeprefix("http://")

    def send(method: str, path: str, body: bytes | None = None, cookie: bool = True):
        connection = http.client.HTTPConnection(host, timeout=60)
        headers = {"Cookie": send.cookie} if cookie else {}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    status, headers, _ = send("GET", served.entry.removeprefix(served.address), cookie=False)
    assert (status, headers["location"]) == (303, "/")
    send.cookie = headers["set-cookie"].split(";")[0]
    return send


@pytest.mark.parametrize("path", ["/", "/static/app.css", "/api/state", "/api/images/unlabeled/0.png", "/?token=wrong"])
def test_without_the_token_nothing_is_answered(ask, path):
    status, _, body = ask("GET", path, cookie=False)
    assert status == 401
    assert b"token" in body
    assert ask("POST", "/api/paint", b"{}", cookie=False)[0] == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(ask, served):
    cookie = ask("GET", served.entry.removeprefix(served.address), cookie=False)[1]["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/%2e%2e/config/run.py",
        "/static//etc/passwd",
        "/../../../../etc/passwd",
        "/api/images/../../config.yaml/0.png",
        "/api/images/..%2f..%2f/0.png",
        "/api/images/unlabeled/..%2f..%2fconfig.yaml.png",
        "/api/patients/%2fetc",
        "/api/patient/..%2f..%2f/0",
        "/api/slides/..%2f0/tile/0/0/0",
        "/api/slides/0/geojson?arm=../../config.yaml",
        "/api/slides/0/overlay/0/0/0?arm=../x",
        "/api/painted/0/..%2f..%2fconfig.yaml",
    ],
)
def test_nothing_outside_of_the_run_is_served(ask, path):
    status, _, body = ask("GET", path)
    assert status in (400, 404, 405)
    assert list(json.loads(body)) == ["error"]
    for secret in (b"root:", b"import", b"stedm run", b"phantom"):
        assert secret not in body


def test_masks_of_unlabeled_patients_are_neither_shown_nor_read(ask, served, monkeypatch):
    read = []
    original = DatasetFolder.read_mask

    def noted(self, row, *rest):
        read.append(self.table["split"].iloc[row])
        return original(self, row, *rest)

    monkeypatch.setattr(DatasetFolder, "read_mask", noted)
    assert (served.run / "data" / "masks").is_dir()
    status, _, body = ask("GET", "/api/truth/unlabeled/0")
    assert (status, json.loads(body)["error"]) == (400, "there is no mask to show of this image")
    assert json.loads(ask("GET", "/api/patient/unlabeled/0")[2])["has_truth"] == [False, False]
    assert ask("GET", "/api/predicted/unlabeled/0?arm=real%2Bstain")[0] == 200
    assert ask("GET", "/api/truth/held_out/0")[0] == 200
    assert "unlabeled" not in read


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/api/uploads/style?name=a.png", b"no image", "a.png: not a readable"),
        ("/api/uploads/style?name=../../etc/x.png", b"no image", "x.png: not a readable"),
        ("/api/uploads/style?name=a.png", b"", "the file is empty"),
        ("/api/uploads/layout?name=m.png", b"\x89PNG\r\n\x1a\n", "m.png: not a readable PNG mask"),
        ("/api/slides?name=a.exe", b"MZ", "a.exe: not a slide or an image by its name"),
        ("/api/paint", b"{}", "layout: Field required"),
        ("/api/paint", b"no json", "Invalid JSON"),
        ("/api/layout", b'{"kind": "warp", "row": 99}', "no such row: 99 of"),
        ("/api/layout", b'{"kind": "warp", "row": 0, "seed": "1e9"}', "not a whole number"),
    ],
)
def test_bad_uploads_and_orders_are_told_in_words(ask, path, body, told):
    status, _, found = ask("POST", path, body)
    text = json.loads(found)["error"]
    assert status == 400
    assert told in text
    assert "/tmp" not in text


def test_uploads_are_bounded(ask, monkeypatch):
    monkeypatch.setattr("stedm.app.server.MOST_UPLOAD_BYTES", 1 << 20)
    status, _, body = ask("POST", "/api/uploads/style?name=a.png", bytes(2 << 20))
    assert (status, json.loads(body)["error"]) == (400, "larger than 1 MB, and that is all that the page takes")


def test_pages_say_that_nothing_else_may_be_loaded(ask):
    _, headers, body = ask("GET", "/")
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["cache-control"] == "no-store"
    assert b"//" not in body.replace(b"<!doctype", b"")


def test_predictions_are_those_of_the_report(ask, opened):
    from stedm.segmentation.predict import predict_masks

    status, headers, body = ask("GET", "/api/predicted/held_out/1?arm=real%2Bstain")
    assert (status, headers["x-width"]) == (200, "32")
    cache, network = opened.images("held_out"), opened.segmenter("real+stain").network
    expected = predict_masks(network, cache.image(1)[None])[0]
    assert np.array_equal(np.frombuffer(body, np.uint8).reshape(32, 32), expected)
