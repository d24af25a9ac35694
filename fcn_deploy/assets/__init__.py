"""What comes along to try things with."""

from pathlib import Path

_ASSETS = Path(__file__).parent

# A narrow FCN-8s (channels / 8) that tells six shapes apart: benchmarks/train_sample.py on procedural scenes.
SAMPLE_CHECKPOINT = _ASSETS / "sample.safetensors"
# A scene it never saw, over a photo it never saw, and its true labels: `benchmarks.train_sample`, held-out, seed 502.
SAMPLE_SCENE = _ASSETS / "scene.jpg"
SAMPLE_LABELS = _ASSETS / "scene.png"
