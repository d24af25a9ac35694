"""The page at `/`, on which a person drops a photo and sees its labels, and the address it posts photos to."""

import base64
import io
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

from fcn_deploy.errors import ImageError
from fcn_deploy.images import MAX_PIXELS, Labels, Pixels, Placement, class_shares, decode_image, label_image, place
from fcn_deploy.serving.http import HttpResponse, json_response
from fcn_deploy.serving.model import ModelService
from fcn_deploy.serving.protocol import bad_request, unavailable
from fcn_deploy.serving.queue import run_in_thread

_STATIC = Path(__file__).parent / "static"
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
class PhotoPage:
    """Serves the page's `files`, and labels the photos it sends, of up to `max_bytes`.

    Photos are decoded in `executor`, which has one thread; `photos` are being worked on.
    """

    service: ModelService
    executor: Executor
    keep_aspect: bool
    max_bytes: int
    photos: int = 0
    files: ClassVar[dict[str, tuple[str, str]]] = {
        "/": ("index.html", "text/html"),
        "/page.css": ("page.css", "text/css"),
        "/page.js": ("page.js", "text/javascript"),
    }

    def file(self, path: str) -> HttpResponse:
        """Return one of the page's files."""
        name, content_type = self.files[path]
        headers = _HEADERS | {"content-type": f"{content_type}; charset=utf-8"}
        return HttpResponse(HTTPStatus.OK, (_STATIC / name).read_bytes(), headers)

    def facts(self) -> HttpResponse:
        """Return what the page says about the model and about photos."""
        segmenter = self.service.segmenter
        return json_response({
            "name": self.service.name,
            "network": str(segmenter.info.network),
            "untrained": segmenter.info.provenance.untrained,
            "height": segmenter.height,
            "width": segmenter.width,
            "max_bytes": self.max_bytes,
            "max_pixels": MAX_PIXELS,
        }, _HEADERS)  # fmt: skip

    async def segment(self, data: memoryview) -> HttpResponse:
        """Return a photo's labels as a PNG of the photo's size, and each class's share.

        Raises:
            RequestError: the file is no photo, or too many photos are waiting.
        """
        if not data:
            raise bad_request("the body is empty", "Post a photo's file.")
        if self.photos > _MAX_WAITING:
            raise unavailable(f"{self.photos} photos are being worked on, and at most {_MAX_WAITING} may wait")
        self.photos += 1
        try:
            return json_response(await self._label(data), _HEADERS)
        except ImageError as error:
            raise bad_request(error.problem, error.remedy) from error
        finally:
            self.photos -= 1

    async def _label(self, data: memoryview) -> dict[str, Any]:
        canvas, placement = await run_in_thread(self.executor, lambda: self._fit(bytes(data)))
        labels = (await self.service.queue.submit(canvas[None])).labels[0]
        return await run_in_thread(self.executor, lambda: self._describe(placement.restore(labels)))

    def _fit(self, data: bytes) -> tuple[Pixels, Placement]:
        # The photo itself, which may be a thousand times as large, is not kept while others are run.
        photo = decode_image(data, "you sent")
        segmenter = self.service.segmenter
        return place(photo, segmenter.height, segmenter.width, keep_aspect=self.keep_aspect)

    def _describe(self, labels: Labels) -> dict[str, Any]:
        info, png = self.service.segmenter.info, io.BytesIO()
        label_image(labels, info).save(png, "PNG")
        classes = [
            {"name": info.class_names[k], "colour": "#{:02x}{:02x}{:02x}".format(*info.palette[k]), "share": share}
            for k, share in class_shares(labels)
        ]
        height, width = labels.shape
        return {
            "height": height,
            "width": width,
            "untrained": info.provenance.untrained,
            "classes": classes,
            "labels_png": base64.b64encode(png.getvalue()).decode(),
        }
