"""An engine with a sidecar as TensorRT would have, for tests of what surrounds it: no test here runs the plan."""

import json
from pathlib import Path

from fcn_deploy.runtime.engine_file import sidecar_path
from tests.engines import built


def engine_for_triton(source: Path, output: Path) -> Path:
    """Built by TensorRT-RTX, which needs no GPU; its sidecar then says TensorRT."""
    built(source, output)
    sidecar = sidecar_path(output)
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    sidecar.write_text(json.dumps(facts | {"flavour": "tensorrt", "version": "10.9.0.34"}), encoding="utf-8")
    return output
