import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_deploy import ImageError, ModelInfo, NetworkSpec, Provenance, Variant
from fcn_deploy.images import MAX_PIXELS, SAMPLE_PHOTO, label_image, place, read_image, resize
from fcn_deploy.preprocessing import Preprocessing
from tests.messages import states

CAFFE = Preprocessing()
INFO = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0))


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    image.save(folder / name, **options)  # type: ignore[arg-type]
    return folder / name


def test_the_sample_photo_is_a_photo() -> None:
    photo = read_image(SAMPLE_PHOTO)

    assert photo.shape == (512, 512, 3)
    assert photo.std() > 50


def test_rgb_comes_back_as_it_is(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)

    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(pixels))), pixels)


def test_grey_is_spread_over_the_channels(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20

    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(grey))), np.stack([grey] * 3, axis=2))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)

    found = read_image(saved(tmp_path, Image.fromarray(grey)))

    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_rgb(tmp_path: Path) -> None:
    """Pillow cannot write it: one row of two pixels, built by hand."""
    row = b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 257, 0)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    )
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 128, 255], [255, 1, 0]]]


def test_transparency_is_shown_over_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)

    assert read_image(saved(tmp_path, Image.fromarray(rgba))).tolist() == [[[10, 20, 30], [255] * 3, [204] * 3]]


def test_transparent_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putdata([0, 1])

    assert read_image(saved(tmp_path, image, transparency=0)).tolist() == [[[255] * 3, [200, 100, 50]]]


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "print.jpg", quality=100)

    assert np.abs(read_image(path).astype(int) - [0, 255, 255]).max() <= 2


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to view

    upright = read_image(saved(tmp_path, image, exif=exif))

    assert upright.shape == (3, 2, 3)
    assert np.argwhere(upright[:, :, 0] == 255).tolist() == [[0, 1]]


def test_one_pixel(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("name", ["animation.gif", "animation.png", "animation.webp"])
def test_animations_are_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])

    with pytest.raises(ImageError, match=rf"{name} .*3 frames"):
        read_image(path)


def test_a_gif_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path, Image.new("RGB", (2, 2), "red"), "still.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("mode", "dtype"), [("F", np.float32), ("I", np.int32)])
def test_pixel_types_without_a_range_are_refused(tmp_path: Path, mode: str, dtype: type) -> None:
    path = saved(tmp_path, Image.fromarray(np.ones((2, 2), dtype=dtype)), "data.tiff")

    with pytest.raises(ImageError, check=states(f"data.tiff pixel type {mode}")):
        read_image(path)


def bomb(folder: Path, side: int) -> Path:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4))
    return folder / "bomb.png"


@pytest.mark.parametrize("side", [13_378, 60_000, 2**31 - 1])
def test_decompression_bombs_are_refused_unread(tmp_path: Path, side: int) -> None:
    assert side**2 > MAX_PIXELS

    with pytest.raises(ImageError, match=rf"bomb\.png .*\d+(x\d+)? .*{MAX_PIXELS}"):
        read_image(bomb(tmp_path, side))


def test_every_truncation_is_reported(tmp_path: Path) -> None:
    photo = SAMPLE_PHOTO.read_bytes()
    path = tmp_path / "cut.jpg"

    for share in (0, 0.001, 0.01, 0.5, 0.99):
        path.write_bytes(photo[: int(len(photo) * share)])
        with pytest.raises(ImageError, match=r"cut\.jpg .*(truncated|unknown image format)"):
            read_image(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)

    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "x.png")

    assert caught.value.exit_code == 3


def test_missing_and_directory(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    for name in ("none.png", "folder"):
        with pytest.raises(ImageError, check=states(f"{name} not file")):
            read_image(tmp_path / name)


def test_preprocess_is_bgr_less_the_mean() -> None:
    image = np.array([[[255, 128, 0]]], dtype=np.uint8)

    found = CAFFE.apply(image[None])

    assert found.dtype == np.float32
    assert found.shape == (1, 3, 1, 1)
    assert found.flags.c_contiguous
    assert found.ravel() == pytest.approx([0 - 104.00698793, 128 - 116.66876762, 255 - 122.67891434], abs=2e-5)


def test_the_mean_image_is_near_zero() -> None:
    assert np.abs(CAFFE.apply(CAFFE.mean_image(2, 3)[None])).max() < 0.5


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_labels_come_back_in_the_photos_size(high: int, wide: int, rows: int, columns: int, keep: bool) -> None:
    photo = np.zeros((high, wide, 3), dtype=np.uint8)

    canvas, placement = place(photo, CAFFE.mean_image(rows, columns), keep_aspect=keep)

    assert canvas.shape == (rows, columns, 3)
    assert placement.restore(np.zeros((rows, columns), dtype=np.uint8)).shape == (high, wide)
    if keep:
        assert placement.height == rows or placement.width == columns
        assert (canvas[placement.height :] == CAFFE.mean_image(1, 1)).all()
        assert (canvas[:, placement.width :] == CAFFE.mean_image(1, 1)).all()


def test_keep_aspect_takes_the_labels_of_the_photo_alone() -> None:
    photo = np.zeros((10, 20, 3), dtype=np.uint8)
    canvas, placement = place(photo, CAFFE.mean_image(40, 40), keep_aspect=True)
    labels = np.full((40, 40), 9, dtype=np.uint8)
    labels[:20, :20], labels[:20, 20:] = 1, 2

    restored = placement.restore(labels)

    assert (canvas[:20] == 0).all()
    assert (restored[:, :10] == 1).all()
    assert (restored[:, 10:] == 2).all()


def test_resize_agrees_with_exact_halving() -> None:
    image = np.array([[[0] * 3, [100] * 3]], dtype=np.uint8).repeat(2, axis=0)

    assert resize(image, 2, 2) is image
    assert resize(image, 1, 1)[0, 0].tolist() == [50, 50, 50]


def test_label_images_hold_the_labels_themselves(tmp_path: Path) -> None:
    labels = np.arange(21, dtype=np.uint8).reshape(3, 7)
    path = tmp_path / "labels.png"
    label_image(labels, INFO).save(path)

    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), labels)
        assert np.array_equal(np.array(image.convert("RGB")), np.array(INFO.palette)[labels])


def test_a_cameras_second_frame_is_no_animation(tmp_path: Path) -> None:
    """Phones store depth and gain maps beside the photo, in the format of stereo cameras."""
    photo, gain = (Image.new("RGB", (8, 8), colour) for colour in ("red", "white"))
    path = saved(tmp_path, photo, "phone.jpg", format="MPO", save_all=True, append_images=[gain])

    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert np.abs(read_image(path)[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_16_bit_pgm(tmp_path: Path) -> None:
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 32768, 65535))

    assert read_image(tmp_path / "deep.pgm")[0, :, 0].tolist() == [128, 255]


def test_postscript_is_not_even_tried(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")

    with pytest.raises(ImageError, check=states("photo.jpg unknown format")):
        read_image(tmp_path / "photo.jpg")


def test_damaged_bytes_never_get_through_as_another_error(tmp_path: Path) -> None:
    """Decoders raise TypeErrors and worse: 300 damaged photos, each read or refused, nothing else."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    clean = {
        name: saved(tmp_path, Image.new("RGB", (16, 16), "red"), name, **options).read_bytes()
        for name, options in {"a.jpg": {"exif": exif}, "b.png": {}, "c.tiff": {}, "d.webp": {}, "e.bmp": {}}.items()
    }
    rng = np.random.default_rng(0)
    for i in range(300):
        name = list(clean)[i % len(clean)]
        data = bytearray(clean[name])
        for position in rng.integers(0, len(data), 6):
            data[position] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(data)
        with contextlib.suppress(ImageError):
            assert read_image(tmp_path / name).ndim == 3
