"""The pages and what they ask for, over HTTP on this machine.

Numbers stand in addresses, never names of files: row 3 of a set, slide 0. So there is no path that could lead out of
the run. Whoever asks has the token of the address that the terminal shows: other users of the machine don't.
"""

import contextlib
import functools
import hashlib
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stedm.app import results
from stedm.app.files import MOST_UPLOAD_BYTES, png, read_layout, read_style
from stedm.app.jobs import BROKEN, Tell, lines
from stedm.app.opened import Opened, open_folder
from stedm.app.painting import Order, Painting, Recipe, agreement
from stedm.app.shelf import MOST_SLIDE_BYTES, Shelf
from stedm.config import MachineConfig
from stedm.errors import StedmError, Terminated
from stedm.io.images import class_palette
from stedm.io.ownership import PAINTED
from stedm.version import __version__

_STATIC = {
    "index.html": "text/html",
    "app.css": "text/css",
    "common.js": "text/javascript",
    "brush.js": "text/javascript",
    "paint.js": "text/javascript",
    "run.js": "text/javascript",
    "viewer.js": "text/javascript",
    "slide.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_MOST_JSON_BYTES = 4 << 20
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCKED = "Open the address that `stedm app` has shown in the terminal; it ends in a token."
_Model = TypeVar("_Model", bound=BaseModel)


class App:
    """The routes, over one opened folder."""

    def __init__(self, opened: Opened, slides: Sequence[Path] = ()):
        self.opened, self.painting, self.shelf = opened, Painting(opened), Shelf(opened, slides)
        self._painting_turn, self._slide_turn = threading.Lock(), threading.Lock()

    def close(self) -> None:
        """Remove what was uploaded and computed."""
        self.shelf.close()

    def routes(self) -> list[Route]:
        get = [
            ("/", lambda request: _static("index.html")),
            ("/static/{name}", lambda request: _static(request.path_params["name"])),
            ("/api/state", self.state),
            ("/api/patients/{set}", self.patients),
            ("/api/images/{set}/{row:int}.png", self.image),
            ("/api/uploads/{number:int}.png", self.uploaded),
            ("/api/painted/{number:int}/{what}", self.painted),
            ("/api/run", lambda request: results.overview(self.opened, self.painting)),
            ("/api/patient/{set}/{number:int}", self.patient),
            ("/api/truth/{set}/{row:int}", lambda request: _pixels(results.truth(self.opened, *_row(request)))),
            ("/api/predicted/{set}/{row:int}", self.predicted),
            ("/api/synthetic/{row:int}/{what}", self.synthetic),
            ("/api/slides", self.slides),
            ("/api/slides/{n:int}", lambda request: self.shelf.look(_int(request, "n"), _mpp(request))),
            ("/api/slides/{n:int}/tile/{zoom:int}/{x:int}/{y:int}", self.tile),
            ("/api/slides/{n:int}/overlay/{zoom:int}/{x:int}/{y:int}", self.overlay_tile),
            ("/api/slides/{n:int}/geojson", self.geojson),
        ]
        post = [
            ("/api/layout", self.layout),
            ("/api/prior", self.prior),
            ("/api/uploads/layout", self.upload_layout),
            ("/api/uploads/style", self.upload_style),
            ("/api/paint", self.paint),
            ("/api/slides", self.upload_slide),
            ("/api/slides/{n:int}/segment", self.segment),
        ]
        return [
            *(Route(path, _answer(function), methods=["GET"]) for path, function in get),
            *(Route(path, function, methods=["POST"]) for path, function in post),
        ]

    # ---- what is there --------------------------------------------------------------------------------------------

    def state(self, request: Request) -> dict[str, Any]:
        """What the page must know before it shows anything."""
        opened, sampling = self.opened, self.opened.sampling
        model = opened.model() if opened.model_folder else None
        segmenter = opened.segmenter(next(iter(opened.segmenters))) if opened.segmenters and not model else None
        classes = model.classes if model else segmenter.classes if segmenter else []
        table = opened.sets["annotated"].dataset.table if "annotated" in opened.sets else None
        judge = opened.judge
        return {
            "name": opened.name,
            "version": __version__,
            "is_run": opened.config is not None,
            "has_model": model is not None,
            "image_px": model.image_px if model else 0,
            "classes": classes,
            "colours": [list(class_palette()[3 * i : 3 * i + 3]) for i in range(len(classes))],
            "most_style_images": (model.largest_style_set or 16) if model else 0,
            "sets": list(opened.sets),
            "data_problem": opened.data_problem,
            "judge": judge,
            "segmenters": list(opened.segmenters),
            "needs_mpp": [arm for arm in opened.segmenters if opened.segmenter(arm).mpp is None],
            "guidance": sampling.guidance.model_dump(),
            "steps": sampling.steps,
            "layouts": [] if table is None else table[["patient_id", "category"]].to_numpy().tolist(),
        }

    def patients(self, request: Request) -> list[dict[str, Any]]:
        """Patients of a set and the rows that show their style."""
        name = request.path_params["set"]
        table = self.opened.images(name).dataset.table
        return [
            {"id": patient, "category": str(table["category"].iloc[rows[0]]), "rows": rows.tolist()}
            for patient, rows in self.painting.patients(name)
        ]

    def image(self, request: Request) -> Response:
        name, row = _row(request)
        cache = self.opened.images(name)
        if row >= len(cache):
            raise StedmError(f"no such image: {row} of {len(cache)}")
        return _png(cache.image(row))

    # ---- paint ----------------------------------------------------------------------------------------------------

    def uploaded(self, request: Request) -> Response:
        image = self.painting.uploads.get(_int(request, "number"))
        if image is None:
            raise StedmError("this upload is no longer kept; upload it again")
        return _png(image)

    def painted(self, request: Request) -> Response:
        number, what = _int(request, "number"), request.path_params["what"]
        kept = self.painting.kept(number)
        if what == "zip":
            return _download(self.painting.zip_of(number), "application/zip", f"painted-{number}.zip")
        if what == "image.png":
            return Response(png(kept.image, PAINTED), media_type="image/png")
        found = {"mask": kept.mask, "seen": kept.seen}.get(what)
        if found is None:
            raise HTTPException(404)
        return _pixels(found)

    async def layout(self, request: Request) -> Response:
        recipe = await _read(request, Recipe)
        return _pixels(await run_in_threadpool(self.painting.layout_of, recipe))

    async def prior(self, request: Request) -> Response:
        asked = await _read(request, _Prior)
        return JSONResponse(
            (await run_in_threadpool(self.painting.from_prior, asked.category, asked.seed)).model_dump()
        )

    async def upload_layout(self, request: Request) -> Response:
        content, name = await _body(request, MOST_UPLOAD_BYTES), request.query_params.get("name", "")
        model, data = self.opened.model(), next(iter(self.opened.sets.values()), None)
        ignored = 255 if data is None else data.dataset.info.ignore_index
        return _pixels(await run_in_threadpool(read_layout, content, name, model.image_px, model.classes, ignored))

    async def upload_style(self, request: Request) -> Response:
        content, name = await _body(request, MOST_UPLOAD_BYTES), request.query_params.get("name", "")
        image = await run_in_threadpool(read_style, content, name, self.opened.model().image_px)
        return JSONResponse({"upload": self.painting.upload(image)})

    async def paint(self, request: Request) -> Response:
        order = await _read(request, Order)

        def work(tell: Tell) -> dict[str, Any]:
            number = self.painting.paint(order, lambda done, of: tell({"done": done, "of": of}))
            kept = self.painting.kept(number)
            classes = len(self.opened.model().classes)
            agreed = None if kept.seen is None else agreement(kept.mask, kept.seen, classes)
            return {"painted": number, "agreement": agreed, "is_plan_row": kept.is_plan_row}

        return _streamed(work, self._painting_turn)

    # ---- run ------------------------------------------------------------------------------------------------------

    def patient(self, request: Request) -> dict[str, Any]:
        return results.patient(self.opened, self.painting, request.path_params["set"], _int(request, "number"))

    def predicted(self, request: Request) -> Response:
        arm = request.query_params.get("arm", "")
        return _pixels(results.predicted(self.opened, *_row(request), arm))

    def synthetic(self, request: Request) -> Response:
        found, row = self.opened.synthetic, _int(request, "row")
        if found is None or row >= len(found):
            raise StedmError("no such painted image in this run")
        if request.path_params["what"] == "image.png":
            return _png(found.read_image(row))
        return _pixels(found.read_mask(row))

    # ---- slides ---------------------------------------------------------------------------------------------------

    def slides(self, request: Request) -> list[str]:
        return [shown.source.name for shown in self.shelf.slides]

    async def upload_slide(self, request: Request) -> Response:
        path = self.shelf.place_for(request.query_params.get("name", ""))
        try:
            with path.open("wb") as file:
                async for part in _parts(request, MOST_SLIDE_BYTES):
                    file.write(part)
        except (StedmError, ClientDisconnect):
            path.unlink(missing_ok=True)
            raise
        return JSONResponse({"slide": self.shelf.add(path)})

    def tile(self, request: Request) -> Response:
        place = [_int(request, name) for name in ("n", "zoom", "x", "y")]
        return Response(self.shelf.tile(*place), media_type="image/jpeg")

    def overlay_tile(self, request: Request) -> Response:
        n, *place = (_int(request, name) for name in ("n", "zoom", "x", "y"))
        tile = self.shelf.overlay_tile(n, request.query_params.get("arm", ""), *place)
        return Response(tile, media_type="image/png")

    async def segment(self, request: Request) -> Response:
        n, arm, mpp = _int(request, "n"), request.query_params.get("arm", ""), _mpp(request)

        def work(tell: Tell) -> dict[str, Any]:
            overlay = self.shelf.segment(n, arm, lambda done, of: tell({"done": int(done), "of": int(of)}), mpp)
            return {"areas": overlay.areas}

        return _streamed(work, self._slide_turn)

    def geojson(self, request: Request) -> Response:
        path = self.shelf.overlay(_int(request, "n"), request.query_params.get("arm", "")).geojson
        return FileResponse(path, media_type="application/geo+json", filename=path.name)


class _Prior(BaseModel):
    category: str | None = None
    seed: int = 0


# ---- answers ------------------------------------------------------------------------------------------------------


def _answer(function: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """In a thread of Starlette's; what isn't a response becomes JSON."""

    @functools.wraps(function)
    def answer(request: Request) -> Response:
        found = function(request)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answer


def _static(name: str) -> Response:
    if name not in _STATIC:
        raise HTTPException(404)
    content = (files("stedm.app") / "static" / name).read_bytes()
    return Response(content, media_type=_STATIC[name])


def _png(image: np.ndarray) -> Response:
    return Response(png(image), media_type="image/png")


def _pixels(mask: np.ndarray) -> Response:
    """Class indices, a byte a pixel; the page colours them."""
    height, width = mask.shape
    headers = {"X-Width": str(width), "X-Height": str(height)}
    return Response(np.ascontiguousarray(mask).tobytes(), media_type="application/octet-stream", headers=headers)


def _download(content: bytes, media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


def _streamed(work: Callable[[Tell], dict[str, Any]], turn: threading.Lock) -> Response:
    return StreamingResponse(lines(work, turn), media_type="application/x-ndjson")


# ---- requests -----------------------------------------------------------------------------------------------------


def _int(request: Request, name: str) -> int:
    return int(request.path_params[name])


def _row(request: Request) -> tuple[str, int]:
    return request.path_params["set"], _int(request, "row")


def _mpp(request: Request) -> float | None:
    text = request.query_params.get("mpp", "")
    try:
        found = float(text) if text else None
    except ValueError:
        found = -1.0
    if found is not None and not 0 < found < 1000:
        raise StedmError(f"microns per pixel: {text[:20]!r} is not a positive number; give one such as 0.5")
    return found


async def _parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body, refused as soon as it is too large."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise StedmError(f"larger than {most >> 20} MB, and that is all that the page takes")
        yield part
    if not size:
        raise StedmError("the file is empty; give another")


async def _body(request: Request, most: int) -> bytes:
    return b"".join([part async for part in _parts(request, most)])


async def _read(request: Request, model: type[_Model]) -> _Model:
    return model.model_validate_json(await _body(request, _MOST_JSON_BYTES))


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        return JSONResponse({"error": text}, 400)
    if isinstance(error, StedmError):
        return JSONResponse({"error": str(error)}, 400)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": BROKEN}, 500)


class _Locked:
    """Answers only those who have the token: once in the address, from then on in a cookie."""

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token
        # Cookies don't know of ports: two apps on one machine need two names.
        self.cookie = f"stedm-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        answer: ASGIApp = Response(_LOCKED, 401, media_type="text/plain")
        given = request.query_params.get("token", "") if request.method == "GET" else ""
        if secrets.compare_digest(given.encode(), self.token.encode()):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
        elif secrets.compare_digest(request.cookies.get(self.cookie, "").encode(), self.token.encode()):
            answer = self.app
        await answer(scope, receive, send_with_headers)


# ---- the server ---------------------------------------------------------------------------------------------------


def make_app(app: App, token: str) -> ASGIApp:
    """The ASGI application."""
    kinds = (StedmError, ValidationError, HTTPException, Exception)
    return _Locked(Starlette(routes=app.routes(), exception_handlers=dict.fromkeys(kinds, _refused)), token)


def serve(folder: Path | None, slides: Sequence[Path], machine: MachineConfig, host: str, port: int) -> None:
    """Open a folder and serve the pages until Ctrl-C.

    Raises:
        StedmError: nothing there to open, or the port is taken.
    """
    token, opened = secrets.token_urlsafe(16), open_folder(folder, machine)
    with listen(host, port) as listening, contextlib.closing(App(opened, slides)) as app:
        config = uvicorn.Config(
            make_app(app, token), log_level="warning", ws="none", lifespan="off", server_header=False
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"{opened.name}: http://{shown}:{listening.getsockname()[1]}/?token={token}", flush=True)
        if host not in ("127.0.0.1", "::1", "localhost"):
            print(f"stedm: others can reach {host}; whoever has this address sees the images", file=sys.stderr)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except Terminated:
            raise
        except KeyboardInterrupt:
            return


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 = any that is free. `StedmError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # whoever is faster than the server waits
    except OSError as error:
        listening.close()
        raise StedmError(f"{host}:{port}: {error.strerror or error}; give another --port, or 0 for any") from error
    return listening
