"""Request the labels of a photo from Triton: needs only `pip install 'tritonclient[http,grpc]' pillow`.

python client.py photo.jpg                                    # HTTP, 127.0.0.1:8000
python client.py photo.jpg --grpc --url 127.0.0.1:8001
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

MODEL = "fcn8s"


def segment(client: Any, protocol: Any, model: str, photo: Image.Image) -> Image.Image:
    """Return a palette image of a photo's labels, in the photo's own size."""
    described = client.get_model_metadata(model, **_as_json(protocol))
    sizes = [int(size) for size in described["inputs"][0]["shape"]]
    height, width = sizes[-3:-1]
    # A free size is -1: the server then fits the photo to the network's input.
    fitted = photo if height < 0 else photo.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted)
    if len(sizes) > 3:
        # Requests hold several photos: any number up to the server's batch (-1), or a fixed number.
        pixels = np.stack([pixels] * max(1, sizes[0]))
    sent = protocol.InferInput("pixels", list(pixels.shape), "UINT8")
    sent.set_data_from_numpy(pixels)
    labels = client.infer(model, [sent]).as_numpy("labels")
    image = Image.fromarray(labels.reshape(-1, *labels.shape[-2:])[0])
    image.putpalette(palette(client, protocol, model))
    return image.resize(photo.size, Image.Resampling.NEAREST)


def palette(client: Any, protocol: Any, model: str) -> bytes:
    """Return the colours of the classes, R, G, B each, from the model's configuration."""
    config = client.get_model_config(model, **_as_json(protocol))
    parameters = config.get("config", config)["parameters"]
    return bytes.fromhex(parameters["fcn_deploy.palette"]["string_value"])


def _as_json(protocol: Any) -> dict[str, bool]:
    """Return the argument with which gRPC answers in JSON, as HTTP always does."""
    return {"as_json": True} if protocol is tritonclient.grpc else {}


def main() -> None:
    """Parse the command line, request the labels, and save them."""
    parser = argparse.ArgumentParser(description="Request the labels of a photo from Triton.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", help="host:port; default 127.0.0.1:8000, or 127.0.0.1:8001 with --grpc")
    parser.add_argument("--grpc", action="store_true", help="use gRPC instead of HTTP")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--output", type=Path, help="default: PHOTO.labels.png in the current folder")
    given = parser.parse_args()
    protocol = tritonclient.grpc if given.grpc else tritonclient.http
    output = given.output or Path(f"{given.photo.stem}.labels.png")
    try:
        with Image.open(given.photo) as opened, _client(protocol, given) as client:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
            segment(client, protocol, given.model, photo).save(output)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"{given.photo}: {error}")
    sys.stdout.write(f"{given.photo} -> {output}\n")


def _client(protocol: Any, given: argparse.Namespace) -> Any:
    url = given.url or ("127.0.0.1:8001" if given.grpc else "127.0.0.1:8000")
    return protocol.InferenceServerClient(url)


if __name__ == "__main__":
    main()
