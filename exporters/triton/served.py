"""What Triton is told of a model, in this toolkit's own terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporters.triton.options import TritonBackend
from fcn_deploy.runtime.base import TensorSpec

ANY = -1  # a size that every request chooses for itself


@dataclass(frozen=True)
class ServedTensor:
    """An input or output as Triton's clients see it.

    Attributes:
        spec: name, sizes without the batch that Triton forms (`ANY` where they are free), and NumPy dtype.
        model_shape: what the model itself takes or gives where that is not `spec.shape`.
        ragged: whether requests of different sizes may run together.
    """

    spec: TensorSpec
    model_shape: tuple[int, ...] | None = None
    ragged: bool = False

    @classmethod
    def of(cls, spec: TensorSpec) -> "ServedTensor":
        """A model's tensor of fixed sizes: a batch of one is left out of what clients see."""
        if len(spec.shape) > 1 and spec.shape[0] == 1:
            return cls(TensorSpec(spec.name, spec.shape[1:], spec.dtype), spec.shape)
        return cls(spec)


@dataclass(frozen=True)
class Batching:
    """How Triton puts requests together.

    Attributes:
        size: the most images per run.
        queue_delay_us: how long a request may wait for others, microseconds.
    """

    size: int
    queue_delay_us: int


@dataclass(frozen=True)
class Placement:
    """Where copies of a model run.

    Attributes:
        instances: how many at once.
        gpu: whether on GPUs.
        first_gpu_only: the runtime knows no other; Triton would use all.
        accelerators: ONNX Runtime's providers, most wanted first, and their options as Triton names them.
    """

    instances: int = 1
    gpu: bool = False
    first_gpu_only: bool = False
    accelerators: tuple[tuple[str, Mapping[str, str]], ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A model of a repository.

    Attributes:
        name: what clients and ensembles call it.
        backend: what runs it.
        inputs: what it takes.
        outputs: what it gives.
        warm_up: the shape of the images that it is warmed up with, one shape a run, batch included.
        placement: where it runs.
        batching: how Triton puts requests together; None where it does not.
        parameters: facts that travel with the configuration.
    """

    name: str
    backend: TritonBackend
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    warm_up: tuple[tuple[int, ...], ...] = ()
    placement: Placement = Placement()
    batching: Batching | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """Models of a repository in a row, the first input of each being the first output of the one before.

    Attributes:
        name: what clients call it.
        steps: the models, in order.
        parameters: facts that travel with the configuration.
    """

    name: str
    steps: tuple[ServedModel, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[ServedTensor, ...]:
        """What clients send."""
        return self.steps[0].inputs

    @property
    def outputs(self) -> tuple[ServedTensor, ...]:
        """What clients get."""
        return self.steps[-1].outputs
