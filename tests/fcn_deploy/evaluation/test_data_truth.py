"""Label PNGs are read as they are, or refused with what to do; nothing is scaled, converted or resized."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.evaluation.data import decode_truth
from tests.messages import missing, states

LABELS = np.array([[0, 1, 2, 255], [20, 0, 0, 3]], dtype=np.uint8)
SIZE = LABELS.shape


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([200, 10, 10] * 256)
    return image


def decode(data: bytes, classes: int = 21) -> np.ndarray:
    return decode_truth(data, "a.png", (2, 4), classes)


@pytest.mark.parametrize("image", [palette(LABELS), Image.fromarray(LABELS)], ids=["palette", "grey"])
def test_values_are_labels_whatever_the_colours(image: Image.Image) -> None:
    found = decode(png(image))

    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == np.uint8


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 3), (4, 15)])
def test_palettes_of_fewer_bits(bits: int, top: int) -> None:
    labels = np.minimum(LABELS, top)

    np.testing.assert_array_equal(decode(png(palette(labels), bits=bits)), labels)


def grey_of_four_bits() -> bytes:
    """A reader that takes grey levels scales these: 15 would be read as 255, which is void."""
    data = bytearray(png(palette(np.minimum(LABELS, 15)), bits=4))
    assert data[24:26] == b"\x04\x03"
    data[25] = 0  # greyscale

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    start = data.index(b"PLTE") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    return bytes(data[:start] + data[start + 12 + length :])


def test_the_scaled_grey_is_what_it_says() -> None:
    with Image.open(io.BytesIO(grey_of_four_bits())) as image:
        assert np.array(image)[0].tolist() == [0, 17, 34, 255]


WRONG = [
    (png(Image.new("RGB", (4, 2))), "RGB colours"),
    (png(Image.new("RGBA", (4, 2))), "RGBA colours"),
    (png(Image.new("LA", (4, 2))), "LA 8-bit"),
    (png(Image.new("1", (4, 2))), "1 8-bit"),
    (png(Image.fromarray(LABELS.astype(np.uint16))), "I;16 16 8-bit"),
    (grey_of_four_bits(), "L 4 8-bit"),
    (png(palette(LABELS.T.copy())), "2x4 4x2 photo"),
    (png(palette(LABELS))[:-30], "truncated damaged"),
    (b"", "0 bytes PNG"),
    (b"\x89PNG\r\n\x1a\n", "8 bytes PNG"),
]


@pytest.mark.parametrize(("data", "facts"), WRONG, ids=[facts for _, facts in WRONG])
def test_what_holds_no_labels_of_this_photo(data: bytes, facts: str) -> None:
    with pytest.raises(fd.InputFileError, check=states(f"a.png {facts}")) as caught:
        decode(data)
    assert caught.value.remedy


def test_a_jpeg_under_the_name_of_a_png() -> None:
    file = io.BytesIO()
    Image.new("L", (4, 2)).save(file, "JPEG")

    with pytest.raises(fd.InputFileError, check=states(f"a.png {len(file.getvalue())} bytes PNG")):
        decode(file.getvalue())


def test_values_beyond_the_classes_are_named_and_counted() -> None:
    with pytest.raises(fd.InputFileError) as caught:
        decode(png(palette(LABELS)), 3)

    assert missing("a.png values 3 20 2 pixels 3 classes 255", caught.value.problem) == []
    with pytest.raises(fd.InputFileError, check=states("a.png value 20 1 pixels classes 19 255")):
        decode(png(palette(LABELS)), 20)


def test_a_huge_claim_is_refused_before_it_is_decoded() -> None:
    data = bytearray(png(palette(LABELS)))
    data[16:20] = (400_000).to_bytes(4, "big")
    data[20:24] = (400_000).to_bytes(4, "big")

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")

    with pytest.raises(fd.InputFileError, check=states("a.png damaged 160000000000")):
        decode(bytes(data))


def test_animations_are_refused() -> None:
    first = palette(LABELS)
    with pytest.raises(fd.InputFileError, check=states("a.png animation")):
        decode(png(first, save_all=True, append_images=[palette(255 - LABELS)]))
