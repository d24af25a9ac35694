"""Bundled files to try the toolkit with."""

from pathlib import Path

_ASSETS = Path(__file__).parent

# A narrow FCN-8s (channels / 8) that segments six shapes: benchmarks/train_sample.py on procedural scenes.
SAMPLE_CHECKPOINT = _ASSETS / "sample.safetensors"
# A held-out scene (seed 502 of benchmarks/train_sample.py), over a photo that was not trained on, and its true labels.
SAMPLE_SCENE = _ASSETS / "scene.jpg"
SAMPLE_LABELS = _ASSETS / "scene.png"
