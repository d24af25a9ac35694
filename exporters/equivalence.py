"""Check a graph's validity, and the equivalence of two graphs: by structure where possible, by numbers elsewhere.

Values that the same operators compute from the same inputs and weights are equal by construction. Only what lies
between such values (for a simplified FCN its merged crops, for a live window the blocks that it changes) is run, so
that checking a rewrite of a 540 MB model takes seconds. Where nothing matches, everything is run.
"""

import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from fcn_deploy.errors import ParityError
from fcn_deploy.graph import infer_shapes, static_shape, subgraphs, typed_skeleton
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES
from fcn_deploy.parity.inputs import noise_input, photo_input
from fcn_deploy.runtime.ort_options import RUN_ONCE, OrtOptions
from fcn_deploy.runtime.run_graph import open_graph

_NOISE_SEED = 0
# A rewrite computes the same sums; only the order of their terms may change.
SAME_GRAPH_ERROR = 1e-6

Array = npt.NDArray[Any]
Keys = dict[ir.Value, Hashable]


def check_graph(model: ir.Model) -> None:
    """Run ONNX's own checker, with full shape inference, on a graph.

    Raises:
        ParityError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(typed_skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ParityError(f"ONNX's checker refuses the graph: {error}", remedy="Try --optimize none.") from error


@dataclass(frozen=True)
class Difference:
    """The result of comparing two graphs."""

    compared_nodes: int  # nodes of the rewritten graph that had to be run; 0 when the two are equal by structure
    # largest error over its value's range, of all values that were compared; 0 when none was
    relative_error: float = 0.0
    inputs: tuple[str, ...] = ()  # names of the inputs they were run on; empty when nothing was run

    @property
    def beyond_rounding(self) -> str | None:
        """Return the difference and its bound, in words, when it is larger than rounding explains or NaN."""
        if self.relative_error <= SAME_GRAPH_ERROR:
            return None
        return f"{self.relative_error:.2g} of the range; at most {SAME_GRAPH_ERROR:g} is rounding"


# Values by name, for each kind of noise or photo.
Values = Mapping[str, Mapping[str, Array]]
# Inputs and outputs of parts of one graph that were run before, by the names of both.
Runs = dict[Hashable, tuple[Values, Values]]


def compare_graphs(before: ir.Model, after: ir.Model, *, inner: bool = True, runs: Runs | None = None) -> Difference:
    """Compare two models whose large weights are shared (the same tensor objects).

    A value of the rewritten graph that is computed in another way than the value of the same name and shape is compared
    with it by numbers; values that the same operators compute from two such values are then equal by structure again.
    Without `inner` only the outputs are compared, for rewrites whose rounding errors are to be judged there. Where the
    same graph is compared with several others, `runs` keeps what it computes from one call to the next.

    Raises:
        ParityError: names or shapes of the outputs differ.
        BundleError: ONNX Runtime refuses a part of either graph.
    """
    for model in (before, after):
        # The parts extracted below need the types of their inputs, which a rewrite may have dropped.
        infer_shapes(model)
    _check_same_outputs(before, after)
    keys_before = _value_keys(before, {})
    computed = [value for value in keys_before if not value.is_initializer() and (inner or value.is_graph_output())]
    twins = {value.name: (value, keys_before[value]) for value in computed}
    keys_after = _value_keys(after, twins)
    claims = [value for value, key in keys_after.items() if isinstance(key, _Claim)]
    if not claims:
        return Difference(0)
    originals = [twins[value.name][0] for value in claims]
    keys_after = {value: key.key if isinstance(key, _Claim) else key for value, key in keys_after.items()}
    shared = (set(keys_before.values()) & set(keys_after.values())) - {keys_after[value] for value in claims}
    # Whole networks take most memory while they are prepared, and are run twice.
    options = None if inner else RUN_ONCE
    tails = [_tail(before, originals, keys_before, shared), _tail(after, claims, keys_after, shared)]
    bounds = {v.name or "": v for tail in tails for v in tail.graph.inputs}
    runs = {} if runs is None else runs
    part = (tuple(str(value.name) for value in originals), frozenset(bounds))
    if part not in runs:
        images = {_feed_name(keys_before[value]) for value in before.graph.inputs}
        given: Values = _feeds(bounds, images) if inner else _computed_feeds(before, keys_before, bounds)
        runs[part] = given, _run_on_each(tails[0], given, options)
    given, expected = runs[part]
    errors = _errors(tails[1], given, expected, options)
    # NumPy's maximum, unlike Python's, is NaN if any value is NaN.
    return Difference(len(tails[1].graph), float(np.max(list(errors.values()))), tuple(errors))


def _errors(model: ir.Model, given: Values, expected: Values, options: OrtOptions | None) -> dict[str, list[float]]:
    """Return the errors of a graph's outputs by set of inputs; stops after the first set on which they differ."""
    errors: dict[str, list[float]] = {}
    with open_graph(model, options) as runner:
        for kind, feeds in given.items():
            actual = runner.run({spec.name: feeds[spec.name] for spec in runner.inputs})
            errors[kind] = [
                _relative_error(e, a) for e, a in zip(expected[kind].values(), actual.values(), strict=True)
            ]
            if not np.max(errors[kind]) <= SAME_GRAPH_ERROR:
                break
    return errors


def _run_on_each(model: ir.Model, given: Values, options: OrtOptions | None = None) -> dict[str, dict[str, Array]]:
    """Return the outputs by name for each set of inputs."""
    with open_graph(model, options) as runner:
        names = [spec.name for spec in runner.inputs]
        return {kind: runner.run({name: feeds[name] for name in names}) for kind, feeds in given.items()}


def _check_same_outputs(before: ir.Model, after: ir.Model) -> None:
    names = [", ".join(str(value.name) for value in model.graph.outputs) for model in (before, after)]
    if names[0] != names[1]:
        raise _mismatch("outputs", *names)
    for one, other in zip(before.graph.outputs, after.graph.outputs, strict=True):
        if None not in (static_shape(one), static_shape(other)) and one.shape != other.shape:
            raise _mismatch(f"shape of {one.name}", str(one.shape), str(other.shape))
        if one.dtype != other.dtype:
            raise _mismatch(f"type of {one.name}", str(one.dtype), str(other.dtype))


def _mismatch(what: str, before: str, after: str) -> ParityError:
    return ParityError(f"{what}: {before} before the rewrite, {after} after it", remedy="The earlier graph is kept.")


@dataclass(frozen=True)
class _Claim:
    """The key of a value whose twin is computed in another way: the twin's key."""

    key: Hashable


def _value_keys(model: ir.Model, twins: Mapping[str | None, tuple[ir.Value, Hashable]]) -> Keys:
    """Return a key per value, of how it is computed from inputs and weights: equal keys mean equal values.

    The twin of a value has the same name and shape in the other graph. If the two are computed in different ways, the
    key is a claim to equal the twin, and what is computed from the value counts as computed from the twin.
    """
    keys: Keys = {value: ("input", value.name) for value in model.graph.inputs}
    keys.update({value: _tensor_key(value) for value in model.graph.initializers.values()})
    for node in model.graph:
        made_from = tuple(
            _plain(keys[value]) if value is not None else None for value in (*node.inputs, *_captured(node))
        )
        recipe = (node.domain, node.op_type, _attributes(node), made_from)
        # Hashed, so that keys do not grow with the depth of the graph.
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()
        for index, output in enumerate(node.outputs):
            twin, key = twins.get(output.name, (None, None))
            # An output is compared with its twin even if their shapes are unknown.
            claims = twin is not None and key != (digest, index) and (output.is_graph_output() or _alike(twin, output))
            keys[output] = _Claim(key) if claims else (digest, index)
    return keys


def _captured(node: ir.Node) -> list[ir.Value]:
    """Return the values of the node's own graph that its subgraphs read."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs(node.attributes.values()):
        inner = [value for one in ir.traversal.RecursiveGraphIterator(graph) for value in one.inputs]
        found.update((v, None) for v in (*inner, *graph.outputs) if v is not None and v.graph is node.graph)
    return list(found)


def _plain(key: Hashable) -> Hashable:
    return key.key if isinstance(key, _Claim) else key


def _alike(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and one.shape == other.shape and one.dtype == other.dtype


def _tensor_key(value: ir.Value) -> Hashable:
    tensor = value.const_value
    if tensor is None or tensor.nbytes >= LARGE_TENSOR_BYTES:
        return "shared", id(tensor)
    return _content(tensor)


def _content(tensor: ir.TensorProtocol) -> Hashable:
    data = tensor.tobytes() if not isinstance(tensor, ir.StringTensor) else tuple(tensor.string_data())
    return str(tensor.dtype), tuple(tensor.shape), data


def _attributes(node: ir.Node) -> tuple[tuple[str, Hashable], ...]:
    return tuple(sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items()))


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """Return all of a tensor and of a subgraph, because their text omits values."""
    if attribute.type is ir.AttributeType.TENSOR:
        return _content(attribute.as_tensor())
    graphs = subgraphs([attribute])
    return tuple(ir.to_proto(graph).SerializeToString() for graph in graphs) if graphs else str(attribute.value)


def _tail(model: ir.Model, outputs: Sequence[ir.Value], keys: Keys, shared: set[Hashable]) -> ir.Model:
    """Extract the part of `model` that computes `outputs` from values of `shared`, named by their keys."""
    bounds: dict[ir.Value, None] = {}
    pending = list(outputs)
    for value in pending:
        producer = value.producer()
        for source in (*producer.inputs, *_captured(producer)) if producer is not None else ():
            if source is None or source.is_initializer():
                continue
            if keys[source] in shared:
                bounds[source] = None
            elif source not in pending:
                pending.append(source)
    graph = ir.convenience.extract(model.graph, list(bounds), outputs)
    for value, original in zip(graph.inputs, bounds, strict=True):
        value.name = _feed_name(keys[original])
    return ir.Model(graph, ir_version=model.ir_version)


def _feed_name(key: Hashable) -> str:
    return "value_" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _feeds(values: Mapping[str, ir.Value], images: Collection[str]) -> dict[str, dict[str, Array]]:
    """Return inputs by name: a photo where one of `images` is an RGB image, and noise for every value.

    Values that are true or false choose what is computed: there is noise with all of them true, and false.
    """
    rng = np.random.default_rng(_NOISE_SEED)
    noise, photos, flags = {}, {}, {}
    for name, value in values.items():
        shape, dtype = _fixed(value)
        if dtype == np.bool_:
            flags[name] = np.ones(shape, dtype)
        elif name in images and len(shape) == 4 and shape[1] == 3 and 0 not in shape and dtype.kind not in "iu":
            noise[name] = noise_input(_NOISE_SEED, shape).image.astype(dtype)
            photos[name] = photo_input(SAMPLE_PHOTO, shape).image.astype(dtype)
        else:
            noise[name] = _noise(rng, shape, dtype)
    # The photo first: a rewrite that rounds too much shows there, and is not run on the rest.
    found = {SAMPLE_PHOTO.name: noise | flags | photos} if photos else {}
    found["noise"] = noise | flags
    if flags:
        found["noise, false"] = noise | {name: ~flag for name, flag in flags.items()}
    return found


def _computed_feeds(model: ir.Model, keys: Keys, names: Collection[str]) -> dict[str, dict[str, Array]]:
    """Return the values called `names` by their keys, as the graph computes them from noise and from a photo.

    Rounding errors depend on the values: noise in the middle of a network is not what it computes there.
    """
    values = {_feed_name(key): value for value, key in keys.items() if not value.is_initializer()}
    computed = [values[name] for name in names if values[name].producer() is not None]
    inputs = {str(value.name): value for value in model.graph.inputs}
    feeds = _feeds(inputs, inputs)
    if computed:
        graph = ir.convenience.extract(model.graph, list(model.graph.inputs), computed)
        prefix = ir.Model(graph, ir_version=model.ir_version)
        found = _run_on_each(prefix, feeds)
        feeds = {kind: {**given, **found[kind]} for kind, given in feeds.items()}
    return {kind: {name: given[str(values[name].name)] for name in names} for kind, given in feeds.items()}


def _fixed(value: ir.Value) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return a value's shape and type; raises ParityError unless it can be filled with noise."""
    numeric = value.dtype not in (None, ir.DataType.UNDEFINED, ir.DataType.STRING)
    if value.dtype is None or not numeric or not isinstance(value.type, ir.TensorType) or static_shape(value) is None:
        what = f"{value.type} of {value.shape if value.shape is not None else 'unknown shape'}"
        raise ParityError(
            f"the graphs are not compared: the part that differs reads {what}, not numbers of a fixed shape",
            remedy="The earlier graph is kept.",
        )
    return tuple(value.shape.numpy() if value.shape is not None else ()), value.dtype.numpy()


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return normal noise; of integers pixels (bytes) or else 0 and 1, which are valid indices of most maps."""
    if dtype.kind in "iu":
        return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def _relative_error(expected: Array, actual: Array) -> float:
    """Return the largest difference over the range of `expected`; NaN and infinity fail every bound."""
    if isinstance(expected, list) or expected.dtype.kind in "OSU":  # a sequence, or strings
        return 0.0 if str(expected) == str(actual) else float("inf")
    if expected.shape != actual.shape:
        return float("inf")
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    error, extent = float(np.abs(expected - actual).max(initial=0)), float(np.ptp(expected)) if expected.size else 0.0
    if error == 0:
        return 0.0
    return error / extent if extent else float("inf")
