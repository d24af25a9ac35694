"""What one writes without this toolkit: export, load, simplify, save, run both once, compare. The peer of `export`.

Run as `python -m benchmarks.plain_export OUTPUT.onnx`.
"""

import sys

import numpy as np
import onnx
import onnxsim
import torch

from fcn_deploy import fcn32s


def main(path: str) -> float:
    """Export FCN-32s the plain way; returns the largest absolute difference between PyTorch and ONNX Runtime."""
    import onnxruntime  # this is the peer: it may name what the toolkit wraps

    network = fcn32s().eval()
    image = torch.randn(1, 3, 500, 500) * 60
    torch.onnx.export(network, (image,), path, dynamo=True, opset_version=18, external_data=False, verbose=False)
    simplified, valid = onnxsim.simplify(onnx.load(path))
    if not valid:
        raise RuntimeError("onnxsim reports an invalid model")
    onnx.save(simplified, path)
    with torch.inference_mode():
        expected = network(image).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return float(np.abs(expected - found).max())


if __name__ == "__main__":
    sys.stdout.write(f"largest difference {main(sys.argv[1]):.2e}\n")
