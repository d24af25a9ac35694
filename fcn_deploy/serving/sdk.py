"""The parts of the KServe SDK that are used, imported once.

Its own `ModelServer` is not among them: it listens on every address, reads bodies of any size, turns binary tensors
into lists of Python numbers, and unloads the models at the first signal.
"""

import sys

from fcn_deploy.serving.messages import load_apart

load_apart()
# KServe reads the command line when it is imported; what stands there is not meant for it.
_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelRepository
    from kserve.errors import InvalidInput, ModelNotFound, ServerNotReady
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.rest import v2_datamodels
    from kserve.protocol.rest.v2_endpoints import V2Endpoints
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceServicer",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "ModelRepository",
    "ServerNotReady",
    "V2Endpoints",
    "add_GRPCInferenceServiceServicer_to_server",
    "pb",
    "v2_datamodels",
]
