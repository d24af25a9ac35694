"""The page at `/`: a person drops a photo and sees the labels over it."""

import base64
import io
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from fcn_deploy.errors import ImageError
from fcn_deploy.images import MAX_PIXELS, Labels, Pixels, Placement, class_shares, decode_image, label_image, place
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.gate import PAGE_POST
from fcn_deploy.serving.handing import aside
from fcn_deploy.serving.queue import RunQueue
from fcn_deploy.serving.refusals import bad_request, busy

_STATIC = Path(__file__).parent / "static"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_HEADERS = {
    # Nothing but this server's own files, and pictures the page makes itself.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
# Photos that wait to be decoded, beside the one that is.
_MAX_WAITING = 8


@dataclass
class Page:
    """Serves the page's files, and labels the photos it sends.

    Attributes:
        name: of the model.
        segmenter: the model's facts and size; run by the queue only.
        queue: where they are labelled.
        decoder: one thread; a decoded photo takes up to half a gigabyte.
        keep_aspect: how photos are fitted.
        max_bytes: of a photo's file.
        photos: that are being worked on.
    """

    name: str
    segmenter: Segmenter
    queue: RunQueue
    decoder: Executor
    keep_aspect: bool
    max_bytes: int
    photos: int = 0

    def add_to(self, app: Any) -> None:
        """Add the page's routes to an application."""
        for path in _FILES:
            app.add_route(path, self._file, methods=["GET"])
        app.add_route("/facts", self._facts, methods=["GET"])
        app.add_route(PAGE_POST, self._segment, methods=["POST"])

    async def _file(self, request: Request) -> Response:
        return FileResponse(_STATIC / _FILES[request.url.path], headers=_HEADERS)

    async def _facts(self, _: Request) -> Response:
        info = self.segmenter.info
        return JSONResponse({
            "name": self.name,
            "network": str(info.network),
            "untrained": info.provenance.untrained,
            "height": self.segmenter.height,
            "width": self.segmenter.width,
            "max_bytes": self.max_bytes,
            "max_pixels": MAX_PIXELS,
        }, headers=_HEADERS)  # fmt: skip

    async def _segment(self, request: Request) -> Response:
        """A photo's file in; its labels as a PNG of the photo's size, and each class's share, out."""
        data = await request.body()
        if not data:
            raise bad_request("the body is empty", "Post a photo's file.")
        if self.photos > _MAX_WAITING:
            raise busy(f"{self.photos} photos are being worked on, and no more than {_MAX_WAITING} may wait")
        self.photos += 1
        try:
            return JSONResponse(await self._labelled(data), headers=_HEADERS)
        except ImageError as error:
            raise bad_request(error.problem, error.remedy) from error
        finally:
            self.photos -= 1

    async def _labelled(self, data: bytes) -> dict[str, Any]:
        canvas, placement = await aside(self.decoder, lambda: self._fitted(data))
        answer = await self.queue.submit(canvas[None])
        labels = answer.labels[0]
        return await aside(self.decoder, lambda: self._described(placement.restore(labels)))

    def _fitted(self, data: bytes) -> tuple[Pixels, Placement]:
        # The photo itself, which may be a thousand times as large, is not kept while others are run.
        photo = decode_image(data, "you sent")
        return place(photo, self.segmenter.height, self.segmenter.width, keep_aspect=self.keep_aspect)

    def _described(self, labels: Labels) -> dict[str, Any]:
        info, file = self.segmenter.info, io.BytesIO()
        label_image(labels, info).save(file, "PNG")
        classes = [
            {"name": info.class_names[k], "colour": "#{:02x}{:02x}{:02x}".format(*info.palette[k]), "share": share}
            for k, share in class_shares(labels)
        ]
        height, width = labels.shape
        encoded = base64.b64encode(file.getvalue()).decode()
        return {
            "height": height,
            "width": width,
            "untrained": info.provenance.untrained,
            "classes": classes,
            "labels_png": encoded,
        }
