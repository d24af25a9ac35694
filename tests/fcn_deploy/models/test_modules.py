"""Networks of the user's own code: what is built, what its weights are, and everything that is refused."""

import py_compile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fcn_deploy as fd
from fcn_deploy.artifact.bundle import RebuildOptions
from fcn_deploy.models.logits import Logits, load_module
from fcn_deploy.models.modules import ModuleOptions, load_source, state_sha256
from fcn_deploy.models.rebuild import rebuild
from fcn_deploy.models.weights import WeightsOptions
from tests.messages import states

SHAPE = (1, 3, 16, 24)

NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes=4, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.score = nn.Conv2d(6, num_classes, 1, stride=stride)

    def forward(self, image):
        return self.score(F.relu(self.norm(self.conv(image))))

def make(num_classes=2):
    return Net(num_classes)

ready = Net(3)

class Both(Net):
    def forward(self, image):
        return {"aux": super().forward(image), "out": 2 * super().forward(image)}

class Several(Net):
    def forward(self, image):
        return {"masks": super().forward(image), "edges": super().forward(image)[:, :1]}

class Pair(Net):
    def forward(self, image):
        return super().forward(image), image

class Wet(Net):
    def forward(self, image):
        return F.dropout(super().forward(image), training=True)

class TwoInputs(Net):
    def forward(self, image, mask):
        return super().forward(image)

class Flat(Net):
    def forward(self, image):
        return super().forward(image).mean(dim=(2, 3))

class Odd(Net):
    def forward(self, image):
        return super().forward(image)[:, :, :7, :5]

class Whole(Net):
    def forward(self, image):
        return super().forward(image).double()

class Undefined(Net):
    def forward(self, image):
        return super().forward(image) * float("nan")

class Choosing(Net):
    def forward(self, image):
        if image.mean() > 0:
            return super().forward(image)
        return -super().forward(image)

class Half(Net):
    def __init__(self):
        super().__init__()
        self.half()

class Needy(nn.Module):
    def __init__(self, depth):
        super().__init__()

class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no weights\\nsecond line")

class Reading(Net):
    def __init__(self, path="weights.bin"):
        super().__init__()
        open(path).read()

class Leaving(nn.Module):
    def __init__(self):
        raise SystemExit(3)

class Loud(Net):
    def __init__(self):
        print("building")
        super().__init__()

class Plain(Net):
    def __init__(self):
        super().__init__()
        self.offset = torch.randn(4, 1, 1)
    def forward(self, image):
        return super().forward(image) + self.offset

class Masked(Net):
    def __init__(self, upper=float("-inf")):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, upper]))

class Overwriting(Net):
    def forward(self, image):
        return super().forward(image.mul_(0.5))

class Trained(Net):
    def train(self, mode=True):
        return super().train(True)

class Positive(Net):
    def forward(self, image):
        if torch.compiler.is_compiling() or (image >= 0).all():
            return super().forward(image)
        raise ValueError("negative pixels")

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(4, 1))

class Importing(Net):
    def forward(self, image):
        import helper
        return super().forward(image) * helper.FACTOR

class Wordy(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("x" * 5000)

scripted = torch.jit.script(nn.Conv2d(3, 2, 1))

class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 2, 1)
        nn.init.constant_(self.score.weight, 0.5)
        nn.init.constant_(self.score.bias, 0.25)

    def forward(self, image):
        return self.score(image)

number = 7
def nothing():
    return None
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET, encoding="utf-8")
    return path


def load(net: Path, name: str, weights: WeightsOptions | None = None, **options: Any) -> tuple[Any, ...]:
    return load_module(ModuleOptions(f"{net}:{name}", **options), weights or WeightsOptions(), SHAPE, (-2.0, 2.0))


@pytest.mark.parametrize(("name", "arguments", "classes"), [
    ("Net", "{}", 4), ("Net", '{"num_classes": 7}', 7), ("make", "{}", 2), ("make", '{"num_classes": 5}', 5),
    ("ready", "{}", 3),
])  # fmt: skip
def test_a_class_a_function_or_a_module(net: Path, name: str, arguments: str, classes: int) -> None:
    network, spec, _, names = load(net, name, arguments=arguments)

    assert isinstance(network, nn.Module)
    assert not network.training
    assert isinstance(spec, fd.ModuleSpec)
    assert (spec.num_classes, spec.name, spec.arguments, names) == (classes, name, arguments, ())
    assert spec.sha256 == load_source(ModuleOptions(f"{net}:{name}")).sha256


def test_random_weights_follow_from_the_seed_and_leave_pytorchs_own_alone(net: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (load(net, "Net", WeightsOptions(rng_seed=seed)) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), before)
    assert state_sha256(first[0]) == state_sha256(second[0]) != state_sha256(other[0])
    assert first[2] == second[2]
    assert isinstance(first[2], fd.Provenance)
    assert first[2].rng_seed == 1
    assert first[2].untrained


def test_an_instance_in_a_file_is_random_if_the_seed_changes_it(net: Path) -> None:
    first, other = (load(net, "ready", WeightsOptions(rng_seed=seed)) for seed in (1, 2))

    assert first[2].untrained
    assert first[2].rng_seed == 1
    assert state_sha256(first[0]) != state_sha256(other[0])


def test_weights_that_do_not_depend_on_the_seed_are_the_networks_own(net: Path) -> None:
    network, _, provenance, _ = load(net, "Constant")

    assert isinstance(provenance, fd.Provenance)
    assert provenance.own_weights
    assert not provenance.untrained
    assert provenance.weights_sha256 == state_sha256(network)
    assert "of unknown origin" in str(provenance)


def test_of_a_dictionary_out_is_taken_or_what_is_named(net: Path) -> None:
    image = torch.randn(SHAPE)
    out, aux = (load(net, "Both", output_key=key) for key in (None, "aux"))
    named = load(net, "Several", output_key="edges")

    assert isinstance(out[0], Logits)
    assert isinstance(aux[0], Logits)
    assert torch.equal(out[0](image), 2 * aux[0](image))
    assert out[1].output_key == "out"
    assert named[1].num_classes == 1


@pytest.mark.parametrize(("mode", "corners"), [("bilinear", False), ("bilinear", True), ("nearest", False)])
def test_smaller_logits_are_brought_to_the_images_size(net: Path, mode: str, corners: bool) -> None:
    image = torch.randn(SHAPE)
    options: dict[str, Any] = {
        "arguments": '{"stride": 4}',
        "upsample": fd.UpsampleMode(mode),
        "align_corners": corners,
    }
    network, spec, _, _ = load(net, "Net", **options)

    small = network.wrapped(image)
    found = network(image)

    assert small.shape == (1, 4, 4, 6)
    assert found.shape == (1, 4, 16, 24)
    assert spec.upsample == mode
    if mode == "nearest":
        assert torch.equal(found, small.repeat_interleave(4, 2).repeat_interleave(4, 3))
    elif corners:
        assert torch.allclose(found[..., ::15, ::23], small[..., ::3, ::5], atol=1e-6)
    else:
        # Half-pixel centres: output pixels 1 and 2 lie 1/8 to either side of the middle between cells 0 and 1.
        assert torch.allclose(found[..., 0, 4], 0.375 * small[..., 0, 0] + 0.625 * small[..., 0, 1], atol=1e-6)


@pytest.mark.parametrize(("name", "options", "facts", "remedy"), [
    ("Nett", {}, "net.py Nett Net", "colon"),
    ("number", {}, "number int", "torch.nn.Module"),
    ("nothing", {}, "nothing NoneType torch.nn.Module", "torch.nn.Module"),
    ("Needy", {}, "Needy TypeError depth", "--module-args"),
    ("Net", {"arguments": '{"classes": 5}'}, "Net TypeError classes", "--module-args"),
    ("Failing", {}, "Failing RuntimeError weights net.py", "net.py"),
    ("Reading", {}, "Reading FileNotFoundError weights.bin net.py", "net.py"),
    ("Leaving", {}, "Leaving SystemExit", "net.py"),
    ("Pair", {}, "Pair tuple", "docs/networks.md"),
    ("Pair", {"output_key": "out"}, "Pair tuple 'out'", "--output-key"),
    ("Several", {}, "Several out masks edges", "--output-key"),
    ("Both", {"output_key": "outs"}, "Both outs aux out", "--output-key"),
    ("Wet", {}, "Wet dropout training=True", "self.training"),
    ("TwoInputs", {}, "TwoInputs TypeError mask", "image"),
    ("Flat", {}, "Flat 4 float32", "docs/networks.md"),
    ("Whole", {}, "Whole float64 float32", "docs/networks.md"),
    ("Undefined", {}, "Undefined NaN", "weights"),
    ("Half", {}, "conv.weight Half torch.float16 float32", "--precision"),
    ("Odd", {}, "Odd 7 5 16 24", "--size"),
    ("Trained", {}, "Trained training eval", "super().train"),
    ("Positive", {}, "Positive ValueError negative", "image"),
    ("Lazy", {}, "Lazy 0.weight", "lazy"),
    ("scripted", {}, "scripted TorchScript", "Python"),
    ("Importing", {}, "Importing helper net.py", "helper"),
    ("Net", {"arguments": '{"stride": 4}'}, "Net 4 6 16 24", "--upsample bilinear"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused(
    net: Path, name: str, options: dict[str, Any], facts: str, remedy: str
) -> None:
    with pytest.raises(fd.ModuleError, check=states(facts, remedy=remedy)) as caught:
        load(net, name, **options)
    assert caught.value.exit_code == 3


def test_only_the_first_line_of_an_error_is_shown_with_its_place(net: Path) -> None:
    line = NET.splitlines().index('        raise RuntimeError("no weights\\nsecond line")') + 1

    with pytest.raises(fd.ModuleError, match=rf"RuntimeError: no weights \(net.py, line {line}\)"):
        load(net, "Failing")


@pytest.mark.parametrize(("options", "facts", "remedy"), [
    ({"source": "net.py"}, "'net.py' FILE.py:NAME", "net.py:Net"),
    ({"source": ":Net"}, "':Net'", "net.py:Net"),
    ({"source": "net.py:1x"}, "'net.py:1x'", "colon"),
    ({"source": "net.py:Net", "arguments": "{"}, "'{' JSON", "--module-args"),
    ({"source": "net.py:Net", "arguments": "[1]"}, "'[1]' object", "--module-args"),
    ({"source": "net.py:Net", "align_corners": True}, "--align-corners none", "--upsample bilinear"),
])  # fmt: skip
def test_options_that_say_nothing(options: dict[str, Any], facts: str, remedy: str) -> None:
    with pytest.raises(fd.UsageError, check=states(facts, remedy=remedy)):
        ModuleOptions(**options)


def test_options_without_effect_are_refused(net: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("16 24", remedy="--upsample")):
        load(net, "Net", upsample=fd.UpsampleMode.BILINEAR)
    with pytest.raises(fd.UsageError, check=states("ready", remedy="--module-args")):
        load(net, "ready", arguments='{"num_classes": 2}')
    with pytest.raises(fd.ModuleError, check=states("Net Tensor 'out'", remedy="--output-key")):
        load(net, "Net", output_key="out")
    with pytest.raises(fd.UsageError, check=states("--at-once FCN-8s")):
        load(net, "Net", WeightsOptions(at_once=True, checkpoint=Path("x")))


def test_files_and_modules_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")

    for source, facts in (
        ("none.py:Net", "none.py"), ("nowhere.inside:Net", "nowhere"), ("nowhere:Net", "nowhere"),
        ("broken.py:Net", "broken.py:Net ModuleNotFoundError nowhere_to_be_found"), ("wrong.py:Net", "SyntaxError"),
        ("sys:path", "sys"),
    ):  # fmt: skip
        with pytest.raises(fd.ModuleError, check=states(facts)):
            load_source(ModuleOptions(source))


def test_a_module_is_found_where_the_command_runs_and_beside_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Path
) -> None:
    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\nclass Tiny(nn.Sequential):\n    pass\n")
    net.with_name("outer.py").write_text("from mypackage.nets import Tiny\n")
    monkeypatch.chdir(tmp_path)

    assert load_source(ModuleOptions("mypackage.nets:Tiny")).found.__name__ == "Tiny"
    monkeypatch.chdir("/")
    assert load_source(ModuleOptions(f"{tmp_path}/outer.py:Tiny")).found.__name__ == "Tiny"


def test_what_it_prints_goes_to_stderr(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(net, "Loud")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "building" in captured.err


def checkpoint(folder: Path, network: nn.Module, prefix: str = "", changes: dict[str, Any] | None = None) -> Path:
    changes = changes or {}
    state = {f"{prefix}{name}": value.clone() for name, value in network.state_dict().items()}
    state |= {name: value for name, value in changes.items() if value is not None}
    state = {name: value for name, value in state.items() if changes.get(name, value) is not None}
    path = folder / f"state-{len(list(folder.iterdir()))}.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.net."])
def test_a_checkpoint_is_loaded_and_its_prefix_recognised(net: Path, tmp_path: Path, prefix: str) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9))[0]
    path = checkpoint(tmp_path, trained, prefix)

    network, _, provenance, _ = load(net, "Net", WeightsOptions(path))

    assert state_sha256(network) == state_sha256(trained)
    assert isinstance(provenance, fd.Provenance)
    assert (provenance.prefix, provenance.untrained) == (prefix or None, False)
    assert str(provenance).endswith(f"(prefix {prefix} removed)" if prefix else str(provenance.checkpoint_sha256)[:12])


def test_counts_of_training_steps_may_be_missing(net: Path, tmp_path: Path) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9))[0]
    state = {k: v for k, v in trained.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old.pth")
    save_file(state, tmp_path / "named.safetensors", metadata={"class_names": "a b c d"})

    network = load(net, "Net", WeightsOptions(tmp_path / "old.pth"))[0]
    names = load(net, "Net", WeightsOptions(tmp_path / "named.safetensors"))[3]

    assert torch.equal(network.norm.running_mean, trained.norm.running_mean)
    assert names == ("a", "b", "c", "d")


def test_a_checkpoint_of_another_class_lists_every_difference(net: Path, tmp_path: Path) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9), arguments='{"num_classes": 7}')[0]
    path = checkpoint(tmp_path, trained, changes={"conv.bias": None, "aux.weight": torch.zeros(2, 3)})

    facts = "missing conv.bias 6 extra aux.weight 2x3 mis-shaped score.weight 7x6x1x1 4x6x1x1 score.bias"
    with pytest.raises(fd.CheckpointError, check=states(facts, remedy="--module-args")):
        load(net, "Net", WeightsOptions(path))


def test_code_in_a_checkpoint_is_not_run(net: Path, tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 3, 1), tmp_path / "whole.pth")

    with pytest.raises(fd.CheckpointError, check=states("whole.pth code run")):
        load(net, "Net", WeightsOptions(tmp_path / "whole.pth"))


def info_of(net: Path, name: str = "Net", weights: WeightsOptions | None = None) -> fd.ModelInfo:
    _, spec, provenance, _ = load(net, name, weights)
    found = fd.ModelInfo(spec, provenance)
    again = fd.ModelInfo.from_metadata(found.to_metadata(), "x")
    assert again == found
    return again


def test_the_same_file_gives_the_same_network_again(net: Path) -> None:
    info = info_of(net)

    found = rebuild(info, RebuildOptions(module=f"{net}:Net"))

    assert found.remark == ""
    assert state_sha256(found.network) == info.provenance.weights_sha256


def test_a_changed_file_is_not_run_unless_that_is_wanted(net: Path) -> None:
    info = info_of(net)
    net.write_text(NET + "\nraise RuntimeError('was run')\n")
    with pytest.raises(fd.ModuleError, check=states("net.py SHA-256", remedy="--module-changed")):
        rebuild(info, RebuildOptions(module=f"{net}:Net"))

    net.write_text(NET + "\n# a remark\n")
    found = rebuild(info, RebuildOptions(module=f"{net}:Net", module_changed=True))

    assert "net.py has changed since the export: SHA-256 " in found.remark
    net.write_text(NET.replace("Conv2d(3, 6, 3", "Conv2d(3, 6, 5"))
    with pytest.raises(fd.ModuleError, check=states("weights net.py:Net SHA-256", remedy="checkpoint")):
        rebuild(info, RebuildOptions(module=f"{net}:Net", module_changed=True))


def test_another_name_or_none_is_refused(net: Path) -> None:
    info = info_of(net)

    with pytest.raises(fd.ModuleError, check=states("net.py:Net SHA-256", remedy="--module")):
        rebuild(info, RebuildOptions())
    with pytest.raises(fd.ModuleError, check=states("Net make", remedy="--module")):
        rebuild(info, RebuildOptions(module=f"{net}:make"))


def test_a_module_for_an_fcn_is_refused(net: Path) -> None:
    info = fd.ModelInfo(fd.NetworkSpec(fd.Variant.FCN8S), fd.Provenance(rng_seed=0))

    with pytest.raises(fd.UsageError, check=states("FCN-8s", remedy="--module")):
        rebuild(info, RebuildOptions(module=f"{net}:Net"))


def test_with_a_checkpoint_the_weights_are_the_checkpoints(net: Path, tmp_path: Path) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9))[0]
    path = checkpoint(tmp_path, trained, "module.")
    info = info_of(net, "Net", WeightsOptions(path))

    found = rebuild(info, RebuildOptions(path, f"{net}:Net"))

    assert state_sha256(found.network) == state_sha256(trained)
    with pytest.raises(fd.CheckpointError, check=states("checkpoint SHA-256", remedy="--checkpoint")):
        rebuild(info, RebuildOptions(module=f"{net}:Net"))
    other = checkpoint(tmp_path, load(net, "Net")[0])
    with pytest.raises(fd.CheckpointError, check=states("SHA-256")):
        rebuild(info, RebuildOptions(other, f"{net}:Net"))


def test_a_name_with_and_without_the_prefix_is_refused(net: Path, tmp_path: Path) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9))[0]
    path = checkpoint(tmp_path, trained, "module.", {"score.bias": torch.zeros(4)})

    with pytest.raises(fd.CheckpointError, check=states("score.bias module.score.bias")):
        load(net, "Net", WeightsOptions(path))


def test_a_checkpoint_that_names_other_classes_is_refused(net: Path, tmp_path: Path) -> None:
    trained = load(net, "Net", WeightsOptions(rng_seed=9))[0]
    save_file(trained.state_dict(), tmp_path / "named.safetensors", metadata={"class_names": "a b c d e"})

    with pytest.raises(fd.CheckpointError, check=states("5 classes 4", remedy="class_names")):
        load(net, "Net", WeightsOptions(tmp_path / "named.safetensors"))


def test_infinities_are_accepted_where_the_network_has_its_own(net: Path, tmp_path: Path) -> None:
    masked = load(net, "Masked", WeightsOptions(rng_seed=9))[0]
    path = checkpoint(tmp_path, masked)

    assert state_sha256(load(net, "Masked", WeightsOptions(path))[0]) == state_sha256(masked)
    with pytest.raises(fd.CheckpointError, check=states("mask non-finite")):
        load(net, "Masked", WeightsOptions(path), arguments='{"upper": 1.0}')


def test_tensors_that_are_no_parameters_count_among_the_weights(net: Path, tmp_path: Path) -> None:
    """Its offset is random, and in no state dict: it follows from the seed, also beside a checkpoint."""
    network, _, provenance, _ = load(net, "Plain", WeightsOptions(rng_seed=5))
    path = checkpoint(tmp_path, network)

    alone = rebuild(info_of(net, "Plain", WeightsOptions(rng_seed=5)), RebuildOptions(module=f"{net}:Plain"))
    loaded = info_of(net, "Plain", WeightsOptions(path, rng_seed=5))
    again = rebuild(loaded, RebuildOptions(path, f"{net}:Plain"))

    assert provenance.weights_sha256 == state_sha256(network) == state_sha256(alone.network)
    assert state_sha256(again.network) == state_sha256(network)
    assert not loaded.provenance.untrained


def test_an_input_that_is_overwritten_is_a_copy(net: Path) -> None:
    assert load(net, "Overwriting")[1].num_classes == 4


def test_long_messages_are_cut(net: Path) -> None:
    with pytest.raises(fd.ModuleError) as caught:
        load(net, "Wordy")
    assert len(str(caught.value)) < 800


def test_what_lies_beside_the_file_can_be_imported_when_it_runs(net: Path) -> None:
    net.with_name("helper.py").write_text("FACTOR = 2\n")

    assert load(net, "Importing")[1].num_classes == 4


def test_what_is_run_is_what_was_hashed(tmp_path: Path) -> None:
    """Compiled files beside a source may be of another source."""
    net = tmp_path / "net.py"
    net.write_text("raise RuntimeError('was run')\n")
    py_compile.compile(str(net), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    net.write_text("from torch import nn\ndef Net():\n    return nn.Conv2d(3, 2, 1)\n")

    assert load(net, "Net")[1].num_classes == 2


def test_relative_imports_have_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "relpack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("from torch import nn\nclass Base(nn.Module):\n    pass\n")
    (package / "net.py").write_text("from .base import Base\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(fd.ModuleError, check=states("relative import", remedy="PACKAGE.MODULE:NAME")):
        load_source(ModuleOptions("relpack/net.py:Base"))
    assert load_source(ModuleOptions("relpack.net:Base")).found.__name__ == "Base"


def test_another_name_is_refused_although_the_file_may_have_changed(net: Path) -> None:
    info = info_of(net)

    with pytest.raises(fd.ModuleError, check=states("Net make")):
        rebuild(info, RebuildOptions(module=f"{net}:make", module_changed=True))


@pytest.mark.parametrize(("key", "value", "facts"), [
    ("module", ":Net", "':Net'"), ("module", "", "''"), ("module_args", "{", "'{'"), ("module_args", "[]", "'[]'"),
    ("module_sha256", "00", "`$.network.sha256`"), ("num_classes", "0", "0 255"), ("upsample", "cubic", "'cubic'"),
    ("align_corners", "true", "align_corners none"),
])  # fmt: skip
def test_facts_about_a_module_are_checked(net: Path, key: str, value: str, facts: str) -> None:
    metadata = info_of(net).to_metadata()

    with pytest.raises(fd.BundleError, check=states(f"m.onnx altered {facts}")):
        fd.ModelInfo.from_metadata(metadata | {f"fcn_deploy.{key}": value}, "m.onnx")
