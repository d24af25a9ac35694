"""KServe's protobuf messages in a pool of their own.

They have the same names as those of Triton's client, and protobuf refuses a name the second time: without this, a
process that has used one of the two packages could not load the other.
"""

import importlib.util
import sys
from pathlib import Path

from google.protobuf import descriptor_pool

_MODULE = "kserve.protocol.grpc.grpc_predict_v2_pb2"


def load_apart() -> None:
    """Load them, before KServe does, unless something else has loaded them already."""
    kserve = importlib.util.find_spec("kserve")
    if _MODULE in sys.modules or kserve is None or not kserve.submodule_search_locations:
        return
    file = Path(kserve.submodule_search_locations[0], *_MODULE.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    own, default = descriptor_pool.DescriptorPool(), descriptor_pool.Default
    descriptor_pool.Default = lambda: own
    try:
        spec.loader.exec_module(module)
    finally:
        descriptor_pool.Default = default
    sys.modules[_MODULE] = module
