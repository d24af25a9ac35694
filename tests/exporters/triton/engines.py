"""An engine with a sidecar as TensorRT would have, for tests of what surrounds it: no test here runs the plan."""

import json
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.engine import sidecar_path
from tests.engines import built


def engine_for_triton(source: Path, output: Path, **facts: Any) -> Path:
    """Built by TensorRT-RTX, which needs no GPU; its sidecar then says TensorRT, and whatever else is given."""
    built(source, output)
    return restated(output, flavour="tensorrt", version="10.9.0.34", **facts)


def restated(plan: Path, **facts: Any) -> Path:
    """A plan whose sidecar says otherwise."""
    sidecar = sidecar_path(plan)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text(encoding="utf-8")) | facts), encoding="utf-8")
    return plan
