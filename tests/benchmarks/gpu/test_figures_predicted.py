import pytest

from benchmarks.gpu.figures import Part, part_of, parts
from exporters.passes.cost import Machine
from fcn_deploy.graph import Layer
from tests.exporters.passes.graphs import parsed, weights

# 1000 multiply-adds and 100 elements of 2 bytes a second.
MACHINE = Machine(1000.0, 200.0, 2, 5.0, 1, 1, True, False, "made up")


@pytest.mark.parametrize(("operator", "name", "part"), [
    ("Conv", "conv4_2", "conv4"), ("Conv", "fc6", "fc6"), ("Conv", "score_fr", "scores and up-sampling"),
    ("Conv", "upscore8/convolve", "scores and up-sampling"), ("Relu", "pool1", "ReLUs"), ("MaxPool", "pool1", "pools"),
    ("Concat", "conv4_2/widen", "constants put around windows"), ("Add", "fuse_pool4", "scores and up-sampling"),
    ("Expand", "conv4_2/widen/before", None),
])  # fmt: skip
def test_nodes_are_told_apart_by_what_they_do(operator: str, name: str, part: str | None) -> None:
    assert part_of(Layer(name, operator, (), 0, 0, 0)) == part


def test_a_part_takes_what_each_of_its_nodes_takes_at_least() -> None:
    """3 s of products against 2 of copies, and 4 s of copies: 1600 bytes of float32 are 400 elements."""
    found = Part.of([Layer("a", "Conv", (), 0, 3000, 800), Layer("b", "Conv", (), 0, 1000, 1600)], MACHINE)

    assert found == Part(2, 4000, 1200.0, 3.0 + 4.0)
    assert found.cells == ("2", "0.0", "0", "7000000")


def test_the_whole_is_the_sum_of_the_parts() -> None:
    model = parsed(
        "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)",
        "float[1, 3, 8, 8] x",
        "float[1, 4, 4, 4] y",
        w=weights(4, 3, 3, 3),
    )

    found = parts(model, MACHINE)

    assert found["all"].multiply_adds == 4 * 3 * 9 * 64
    # Elements: 192 + 108 + 256 by the convolution, 512 by the ReLU, 320 by the pool.
    assert found["all"].moved_bytes == 2 * (556 + 512 + 320)
    assert found["all"].limit_s == pytest.approx(max(6.912, 5.56) + 5.12 + 3.20)
    assert {name for name in found if name != "all"} == {"scores and up-sampling", "ReLUs", "pools"}
