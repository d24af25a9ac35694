"""The cost model of rewrites: multiply-adds against bytes moved, per target and arithmetic.

The constants choose between equivalent graphs, so only their proportions have to be right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fcn_deploy.choices import Precision, Target


@dataclass(frozen=True)
class Machine:
    """The peak rates of a target."""

    multiply_adds_per_s: float  # of large convolutions
    bytes_per_s: float  # of large copies, bytes read plus bytes written
    element_bytes: int  # of an activation in the arithmetic the target is used with
    node_s: float  # overhead of a node in seconds, independent of its size
    # times a map is read and written where constants are put around it between two convolutions
    copies_per_widening: int
    # times the products of a transposed convolution are written and read before they are summed; 0 where the sum is
    # made in place
    copies_per_deconvolution: int
    crops_deconvolutions: bool  # whether a transposed convolution with a cropped border is not slower
    # whether a ReLU is fused into the convolution before it, instead of reading and writing the map again
    fuses_relus: bool
    source: str  # where the figures are from
    # multiply-adds of batched matrix products, and bytes read plus bytes written by the transforms around them, of a
    # fast convolution; 0 where the runtime chooses such algorithms by itself
    products_per_s: float = 0.0
    transform_bytes_per_s: float = 0.0

    def seconds(self, multiply_adds: float, elements: float) -> float:
        """Return the time of one node: of its multiply-adds or of moving its elements, whichever is longer."""
        return max(multiply_adds / self.multiply_adds_per_s, self.copy_seconds(elements)) + self.node_s

    def copy_seconds(self, elements: float) -> float:
        """Return the time of moving elements."""
        return elements * self.element_bytes / self.bytes_per_s


_FLOAT_ON_GPU = Machine(
    multiply_adds_per_s=33.5e12,
    bytes_per_s=3.35e12,
    element_bytes=4,
    node_s=4e-6,
    copies_per_widening=1,
    copies_per_deconvolution=0,
    crops_deconvolutions=True,
    # ONNX Runtime fuses ReLUs on CPUs; the graph that it writes for its CUDA provider still has every one of them.
    fuses_relus=False,
    source="NVIDIA H100 SXM data sheet: 67 TFLOPS float32, 3.35 TB/s",
)
_HALF_ON_GPU = replace(
    _FLOAT_ON_GPU,
    multiply_adds_per_s=495e12,
    element_bytes=2,
    source="NVIDIA H100 SXM data sheet: 990 TFLOPS float16 tensor cores (dense), 3.35 TB/s",
)
MACHINES: Mapping[Target, Machine] = {
    Target.CPU: Machine(
        multiply_adds_per_s=260e9,
        bytes_per_s=74e9,
        element_bytes=4,
        node_s=5e-6,
        # ONNX Runtime keeps maps in blocks of channels between convolutions, and unblocks them around a Concat.
        copies_per_widening=3,
        # ONNX Runtime writes the matrix of all products, then adds it up (col2im): 1 to 2 ns per product, measured
        # on upscore, upscore16 and upscore8; with padding, up to 1.7 times as long.
        copies_per_deconvolution=4,
        crops_deconvolutions=False,
        fuses_relus=True,
        # Per node of FCN-8s with fast convolutions: products ran at 0.75 to 0.8 of the rate of direct convolutions, and
        # transforms took as long per byte as 0.2 bytes per multiply-add.
        products_per_s=200e9,
        transform_bytes_per_s=50e9,
        source="ceilings measured by `fcn-deploy bench` on two AMD EPYC cores, float32 (benchmarks/results)",
    ),
    Target.CUDA: _FLOAT_ON_GPU,
    # TensorRT engines are mostly built in half precision, also from float32 graphs.
    Target.TENSORRT: replace(_HALF_ON_GPU, fuses_relus=True),
}


def machine_of(target: Target, precision: Precision) -> Machine:
    """Return the machine of a target for graphs of that precision.

    Tensor cores multiply halves 15 times as fast as CUDA cores multiply float32, but half as many bytes move only
    twice as fast: copies cost relatively more than in float32.
    """
    on_gpu = target is Target.CUDA and precision in (Precision.FP16, Precision.BF16)
    return _HALF_ON_GPU if on_gpu else MACHINES[target]
