"""Networks of the user's own code: import one, build it, and load its weights.

Importing a source runs its code. That happens only where a user names it, never for what is written in an artifact.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fcn_deploy.choices import UpsampleMode
from fcn_deploy.errors import FcnDeployError, ModuleError, UsageError
from fcn_deploy.model_info import NO_ARGUMENTS, ModuleSpec, Provenance, check_module
from fcn_deploy.models.checkpoints import as_type, check_tensors, read_state, without_common_prefix
from fcn_deploy.models.weights import WeightsOptions

Shape = tuple[int, int, int, int]

_SUFFIX = ".py"
_MOST_NAMES = 8
_MOST_CHARACTERS = 300
_COUNTS = ".num_batches_tracked"
_NOTHING_LOADED = "Nothing was loaded: a missing or invented tensor would change the network. Check --module-args."
_NAME_A_MODULE = "Name a subclass of torch.nn.Module, or a function that returns one."


@dataclass(frozen=True)
class ModuleOptions:
    """A network of the user's own code, and how its output becomes logits.

    Attributes:
        source: `path/to/net.py:Name` or `package.module:Name`; a class, a function that returns a module, or a module.
        arguments: a JSON object with the keyword arguments of the class or function.
        output_key: which value of a dictionary of outputs are the logits; None takes `out`.
        upsample: how smaller logits are brought to the size of the image.
        align_corners: whether bilinear up-sampling aligns the centres of the corner pixels, as `interpolate` calls it.

    Raises:
        UsageError: the source has no name, the arguments are no JSON object, or an option has no effect.
    """

    source: str
    arguments: str = "{}"
    output_key: str | None = None
    upsample: UpsampleMode = UpsampleMode.NONE
    align_corners: bool = False

    def __post_init__(self) -> None:
        self.keywords()
        if self.align_corners and self.upsample is not UpsampleMode.BILINEAR:
            raise UsageError(
                f"--align-corners has no effect with --upsample {self.upsample}", remedy="Pass --upsample bilinear."
            )

    @property
    def place(self) -> str:
        """The file or module."""
        return self.source.rpartition(":")[0]

    @property
    def name(self) -> str:
        """The name within it."""
        return self.source.rpartition(":")[2]

    @property
    def is_file(self) -> bool:
        """Whether the source is a file, not a module of a package."""
        return self.place.endswith(_SUFFIX)

    @property
    def folder(self) -> Path:
        """The folder that its code may import from: that of the file, or the current one."""
        return Path(self.place).resolve().parent if self.is_file else Path.cwd()

    @property
    def recorded(self) -> str:
        """The source as artifacts record it: of an absolute path the file's name alone."""
        return f"{Path(self.place).name}:{self.name}" if Path(self.place).is_absolute() else self.source

    def keywords(self) -> dict[str, Any]:
        """Return the arguments; raises UsageError if they are no JSON object."""
        return check_module(self.source, self.arguments)


@dataclass(frozen=True)
class ModuleSource:
    """An imported source."""

    options: ModuleOptions  # what was asked for
    sha256: str  # of its file, in hex
    found: Any  # what has the name: a class, a function or a module

    def build(self, rng_seed: int) -> nn.Module:
        """Return the network in eval mode; random weights follow from the seed.

        Raises:
            ModuleError: it raises, is no module, or cannot be exported from float32 on the CPU.
        """
        network = self.found
        keywords = self.options.keywords()
        if not isinstance(network, nn.Module):
            with users_code(self.options, "build", rng_seed):
                network = self.found(**keywords)
        elif keywords:
            raise UsageError(
                f"{self.options.source} is built already, so {self.options.arguments} cannot be passed to it",
                remedy="Omit --module-args, or name its class.",
            )
        if not isinstance(network, nn.Module):
            raise ModuleError(
                f"{self.options.source} gives a {type(network).__name__}, which is no torch.nn.Module",
                remedy=_NAME_A_MODULE,
            )
        _check_state(network.eval(), self.options)
        return network


def _check_state(network: nn.Module, options: ModuleOptions) -> None:
    if isinstance(network, torch.jit.ScriptModule):
        raise ModuleError(
            f"{options.source} is a TorchScript module, which cannot be exported again",
            remedy="Name the Python class that it was made from.",
        )
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise ModuleError(
            f"{training[0]} of {options.source} stays in training mode after eval()",
            remedy="Let it leave training mode: call super().train(mode) in train.",
        )
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if value.is_floating_point() and value.dtype is not torch.float32:
            raise ModuleError(
                f"{name} of {options.source} is {value.dtype}; graphs are exported from float32",
                remedy="Build it in float32, and pass --precision to export.",
            )
        if value.device.type != "cpu" or isinstance(value, nn.UninitializedParameter):
            raise ModuleError(
                f"{name} of {options.source} is not on the CPU ({value.device}), or has no shape yet",
                remedy="Build it on the CPU, without .cuda() and without lazy layers.",
            )


def load_source(
    options: ModuleOptions, rng_seed: int = 0, expected: ModuleSpec | None = None, *, may_differ: bool = False
) -> ModuleSource:
    """Import a source, which runs its code.

    With `expected`, its code is run only if the name is that of the expected one, and, unless it `may_differ`, the
    file's hash too. Of a file, what is run is what was hashed.

    Raises:
        ModuleError: there is no such file, module or name, it is not the expected one, or importing it raises.
    """
    file = file_of(options, rng_seed)
    content = _content(options, file)
    sha256 = hashlib.sha256(content).hexdigest()
    if expected is not None:
        check_expected(options, None if may_differ else sha256, expected)
    module = _import_file(options, content, rng_seed) if options.is_file else _import_module(options, rng_seed)
    found: Any = module
    for part in options.name.split("."):
        if not hasattr(found, part):
            raise ModuleError(
                f"{options.place} has no {options.name}: it has {_offered(module, part)}",
                remedy="Pass the name of the class after the colon.",
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and not callable(found):
        raise ModuleError(
            f"{options.source} is a {type(found).__name__}, neither a class, a function nor a torch.nn.Module",
            remedy=_NAME_A_MODULE,
        )
    return ModuleSource(options, sha256, found)


def _content(options: ModuleOptions, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModuleError(
            f"module {options.place} cannot be read: {error.strerror}", remedy="Check its permissions."
        ) from error


def check_expected(options: ModuleOptions, sha256: str | None, expected: ModuleSpec) -> None:
    """Check name and hash of a source against those that an artifact was exported from; ModuleError if they differ.

    The hash is not checked if it is None.
    """
    if options.name != expected.name:
        raise ModuleError(
            f"the artifact was exported from {expected.name} of {expected.source}, not from {options.name}",
            remedy=f"Pass --module {options.place}:{expected.name}.",
        )
    if sha256 not in (None, expected.sha256):
        raise ModuleError(
            f"{options.place} has SHA-256 {sha256}; the artifact was exported from {expected.sha256}",
            remedy="Pass the file it was exported from. Or pass --module-changed to compare with the file as it is: "
            "the result says so.",
        )


def file_of(options: ModuleOptions, rng_seed: int) -> Path:
    """Return the file of a source, before its code is run; the packages around a module are imported."""
    if options.is_file:
        path = Path(options.place)
        if not path.is_file():
            raise ModuleError(f"module {path} is not a file", remedy="Check the path.")
        return path
    with users_code(options, "find", rng_seed):
        spec = importlib.util.find_spec(options.place)
    if spec is None:
        raise ModuleError(
            f"there is no module {options.place}",
            remedy="Install its package, run the command where it can be imported, or pass the path of its file.",
        )
    file = Path(spec.origin or "")
    if not file.is_file():
        raise ModuleError(f"{options.place} has no file to record", remedy="Name the module that defines the network.")
    return file


def _offered(module: ModuleType, wanted: str) -> str:
    own = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
    similar = difflib.get_close_matches(wanted, own, _MOST_NAMES) or own[:_MOST_NAMES]
    return ", ".join(similar) or "no class or function"


def _import_file(options: ModuleOptions, content: bytes, rng_seed: int) -> ModuleType:
    """Run the content of a file as a module; no compiled file beside it is used."""
    path = Path(options.place).resolve()
    # Two files of one name are two modules.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ModuleError(f"module {path} cannot be imported", remedy="Check the path.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with users_code(options, "import", rng_seed):
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102 - the user asks for it
    return module


def _import_module(options: ModuleOptions, rng_seed: int) -> ModuleType:
    with users_code(options, "import", rng_seed):
        return importlib.import_module(options.place)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported: before all others now, and after them later, when the network runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


@contextlib.contextmanager
def users_code(options: ModuleOptions, verb: str, rng_seed: int) -> Iterator[None]:
    """Run the user's code: seeded, what it prints to stderr, what it raises as a ModuleError."""
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(sys.stderr),
        _importable(options.folder),
    ):
        torch.manual_seed(rng_seed)
        try:
            yield
        except FcnDeployError:
            raise
        except (Exception, SystemExit) as error:
            raise ModuleError(
                f"cannot {verb} {options.source}: {described(error)}", remedy=_remedy(options, verb, error)
            ) from error


def described(error: BaseException) -> str:
    """Return an exception's type and first line, and the last place in code that is not installed."""
    line = (str(error).strip().splitlines() or [""])[0]
    shown = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."
    text = f"{type(error).__name__}: {shown}".removesuffix(": ")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def _is_own(filename: str) -> bool:
    own = Path(__file__).parents[1]
    return "site-packages" not in filename and not filename.startswith(("<", str(own)))


def _remedy(options: ModuleOptions, verb: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"Install {error.name}, or run the command where it can be imported."
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "Pass it as PACKAGE.MODULE:NAME, in the folder that holds the package."
    if verb == "run":
        return "It has to take a single float32 image, N x 3 x H x W, of the --size and --batch that are asked for."
    if isinstance(error, TypeError) and "argument" in str(error):
        if options.arguments != NO_ARGUMENTS:
            return "Check --module-args, and its own code."
        return """Pass its keyword arguments as a JSON object: --module-args '{"num_classes": 5}'."""
    return f"Correct {options.place}: it has to work without this toolkit, too."


def weighted(source: ModuleSource, weights: WeightsOptions) -> tuple[nn.Module, Provenance, tuple[str, ...]]:
    """Build a network and load its weights.

    Without a checkpoint it is built twice, with two seeds: weights that do not depend on them are not random. Of an
    instance in an installed module that cannot be known.

    Returns:
        The network; where its weights came from; the names of its classes, where the checkpoint has them.

    Raises:
        ModuleError: it cannot be built.
        CheckpointError: the checkpoint is unreadable, unsafe, or not of this network.
    """
    network, seed = source.build(weights.rng_seed), weights.rng_seed
    if weights.checkpoint is not None:
        loaded = load_checkpoint(network, weights.checkpoint)
        found = Provenance(
            seed,
            loaded.sha256,
            prefix=loaded.prefix or None,
            own_weights=True,
            weights_sha256=state_sha256(network),
        )
        return network, found, loaded.class_names
    sha256 = state_sha256(network)
    is_instance = isinstance(source.found, nn.Module)
    again = source
    if is_instance and source.options.is_file:
        again = load_source(source.options, seed + 1)
    own = (again is source and is_instance) or state_sha256(again.build(seed + 1)) == sha256
    return network, Provenance(rng_seed=seed, own_weights=own, weights_sha256=sha256), ()


@dataclass(frozen=True)
class LoadedState:
    """A checkpoint that was loaded into a network."""

    sha256: str  # of the file, in hex
    prefix: str  # what was removed from all its names
    class_names: tuple[str, ...]  # names of the classes, where it has them


def load_checkpoint(network: nn.Module, path: Path) -> LoadedState:
    """Load a state dict strictly; only counts of training steps may be missing."""
    stored = read_state(path)
    expected = {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    prefix, state = without_common_prefix(path, stored.state, expected)
    # Files of older PyTorch versions lack them; no layer uses them when it is not trained.
    counts = {name: value.detach() for name, value in expected.items() if name.endswith(_COUNTS)}
    loaded = {name: as_type(path, name, value, expected.get(name, value)) for name, value in state.items()}
    check_tensors(path, expected, counts | loaded, "does not fit the network", _NOTHING_LOADED)
    network.load_state_dict(counts | loaded)
    return LoadedState(stored.sha256, prefix, stored.class_names)


def state_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters, buffers and other tensors of a network, with their names, in hex."""
    values = dict(network.state_dict())
    for prefix, module in network.named_modules():
        # Not all buffers are in the state dict.
        others = {**vars(module), **dict(module.named_buffers(recurse=False))}
        values |= {f"{prefix}.{name}": value for name, value in others.items() if isinstance(value, Tensor)}
    digest = hashlib.sha256()
    for name, value in values.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
