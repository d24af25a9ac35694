from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_deploy.images import read_image


@pytest.fixture
def photos(photo: Path, tmp_path: Path) -> list[Path]:
    """Twelve different 60x80 pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = read_image(photo)
    for i in range(12):
        Image.fromarray(np.roll(pixels, 5 * i, axis=1)).save(folder / f"{i:02d}.png")
    return sorted(folder.iterdir())
