"""Private parameter store of a program.

Its entries are ordinary torch parameters.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Transform
from torch.overrides import TorchFunctionMode

from ppl_dgm.generators import unmoved_generators
from ppl_dgm.program.handlers import SizedPlates
from ppl_dgm.program.placement import Placement
from ppl_dgm.pyro_state import pyro_in_turn

__all__ = ["MODULE_DIVIDER", "ParameterScope", "ScopedCallable", "calling_module", "store_contents"]

MODULE_DIVIDER = "$$$"  # how Pyro spells "parameter of a module" in parameter names


def resolve_parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Find or create the containers of a dotted name.

    Returns the last container and the name of the leaf.
    """
    *containers, leaf = path.split(".")
    for name in containers:
        if name not in root._modules:
            root._modules[name] = nn.Module()
        root = root._modules[name]  # type: ignore[assignment]
    return root, leaf


def calling_module() -> tuple[str, nn.Module] | None:
    """Return name and module of the running `pyro.module` statement.

    It is None where there is no such statement.

    `pyro.module` is not an effect: the module it was given (with its buffers) is only to be seen in
    its frame.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back
    return None


class ModuleRecorder(Messenger):
    """Pyro handler that records a program's parameters and modules.

    The parameters are those that no handler of the program hides, the modules those of
    `pyro.module`.
    """

    def __init__(self, known: dict[str, int], seen: set[str], place: "Placement") -> None:
        super().__init__()
        self.known, self.seen, self.place = known, seen, place
        self.modules: dict[str, nn.Module] = {}

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        self.seen.add(name)
        if len(msg["args"]) < 2:
            return
        if MODULE_DIVIDER not in name:
            msg["args"] = (name, self.place.of_start(msg["args"][1]), *msg["args"][2:])
            return
        if self.known.setdefault(name, id(msg["args"][1])) != id(msg["args"][1]):
            raise ValueError(
                f"the name {name.split(MODULE_DIVIDER)[0]!r} of a pyro.module statement stands for "
                "two different modules in one half of a program; give each module its own name"
            )
        found = calling_module()
        if found is not None:
            self.modules[found[0]] = self.place.of_module(found[1])


@contextmanager
def store_contents(params: dict[str, Any], constraints: dict[str, Any]) -> Iterator[None]:
    """Exchange the contents of Pyro's parameter store.

    What the block creates goes to the given dictionaries.

    `ParamStoreDict.scope` copies all parameters on each call and strips them of what
    `pyro.infer.SVI` looks for.
    """
    store = pyro.get_param_store()
    outer = store._params, store._constraints, store._param_to_name
    names = {parameter: name for name, parameter in params.items()}
    store._params, store._constraints, store._param_to_name = params, constraints, names
    try:
        yield
    finally:
        store._params, store._constraints, store._param_to_name = outer


class CopyValues(TorchFunctionMode):
    """Mode in which `copy.deepcopy` copies tensors of autograd graphs.

    It copies their values. Torch refuses to copy such tensors.

    Modules hold them as what they remember of their last run, as Pyro's transforms do of their last
    input and output.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


class ParameterScope(nn.Module):
    """Owner of the parameters of one program.

    It lends them to Pyro's parameter store while the program runs.

    Names are those of the program: `pyro.param("loc")` is the parameter `loc`,
    `pyro.module("decoder", net)` the submodule `decoder`. Values are unconstrained; constraints are
    kept beside them. Outside a call of the program Pyro's global store is untouched, and the
    program never sees what the global store holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constraints: dict[str, Any] = {}
        self._known_modules: dict[str, dict[str, int]] = {}  # by half of the program
        self._seen: set[str] = set()  # parameters that no handler of the program hides
        self._borrowed: list[str] = []  # modules that functions close over
        self._modules_by_half: dict[str, list[nn.Module]] = {}  # modules by half of the program
        self._caching_by_half: dict[
            str, list[Transform]
        ] = {}  # transforms among them, once all are known
        self._sealed = False
        self._of_modules: set[str] = (
            set()
        )  # names under which PyroModules announce parameters of their own
        self._waiting: dict[str, Tensor] = {}  # values of a file for what the first run creates
        self._source = ""
        self._place = Placement()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ParameterScope":
        """Move all tensors and remember the device and precision.

        What the first run makes gets them too.
        """
        self._place = self._place.after(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ParameterScope":
        self._check_own()
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with CopyValues():
            twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without Pyro's weak references to parameters."""
        self._check_own()
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return dict(vars(self))

    def _check_own(self) -> None:
        """Refuse to copy functions that hold modules."""
        if self._borrowed:
            raise ValueError(
                f"the program's functions hold the modules {self._borrowed} themselves, so that a "
                "copy of the program would go on using them; write the model or guide as a "
                "torch.nn.Module that owns them, or build a second program (initialise it on "
                "data) and load_state_dict"
            )

    def adopt(self, name: str, module: nn.Module, role: str = "") -> bool:
        """Register a module under a name.

        Its parameters and buffers come with it. Returns False if the module is registered already.

        Where model and guide have modules of one name, the later one's name is that of its half and
        its own.
        """
        if any(module is own for own in self.modules()):
            return False
        parent, leaf = resolve_parent(self, name)
        if role and leaf in parent._modules:
            parent, leaf = resolve_parent(self, f"{role}_modules.{name}")
        parent._modules[leaf] = module
        half = role or name
        self._modules_by_half[half] = [*self._modules_by_half.get(half, []), module]
        return True

    def forget_values(self, role: str) -> None:
        """Clear what the transforms of one half remember.

        Pyro's own return it for a tensor that they have seen, whatever their parameters are by now.
        Transforms that both halves use are the guide's, which is asked for its density last.
        """
        found = self._caching_by_half.get(role)
        if found is None:
            kept = {} if role == "guide" else self._transforms_of("guide")
            own = self._transforms_of(role)
            found = [own[key] for key in own.keys() - kept.keys()]
        if self._sealed:
            self._caching_by_half[role] = found
        for transform in found:
            transform._cached_x_y = None, None

    def _transforms_of(self, role: str) -> dict[int, Transform]:
        """Transforms of one half, by identity."""
        modules = (
            module for part in self._modules_by_half.get(role, []) for module in part.modules()
        )
        return {id(module): module for module in modules if isinstance(module, Transform)}

    @property
    def site_parameters(self) -> dict[str, nn.Parameter]:
        """Unconstrained values of the `pyro.param` statements by name."""
        named = {}
        for name in self._constraints:
            parent, leaf = resolve_parent(self, name)
            named[name] = parent._parameters[leaf]
        return named

    @property
    def moved(self) -> bool:
        """Whether the program was given a device or precision."""
        return self._place != Placement()

    @property
    def initialised(self) -> bool:
        """Whether all parameters exist.

        The program has then run on data and been checked.
        """
        return self._sealed

    def seal(self) -> None:
        """Declare the parameters complete.

        Those hidden by `poutine.block` are frozen, as in Pyro's own fits.
        """
        if not self._sealed:
            for name in self._constraints.keys() - self._seen:
                self.site_parameters[name].requires_grad_(False)
            if self._place.dtype is not None:  # guides make tensors that no statement announces
                super()._apply(self._place.of_tensor)
        self._sealed = True

    def forget(self, keep: set[str]) -> None:
        """Drop the `pyro.param` parameters that are not in `keep`.

        They are those of a run that failed.
        """
        for name in self._constraints.keys() - keep:
            parent, leaf = resolve_parent(self, name)
            del parent._parameters[leaf], self._constraints[name]

    def take_when_created(self, state: dict[str, Tensor], source: str) -> None:
        """Keep loaded values until their parameters are created."""
        self._waiting, self._source = dict(state), source

    @property
    def waiting(self) -> bool:
        """Whether loaded values wait for parameters not yet created."""
        return bool(self._waiting)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save loaded values that wait for parameters too."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: value for name, value in self._waiting.items()})

    def take(self) -> None:
        """Give existing parameters and buffers their loaded values."""
        own = dict(self.named_parameters(remove_duplicate=False))
        own |= dict(self.named_buffers(remove_duplicate=False))
        with torch.no_grad():
            for name in self._waiting.keys() & own.keys():
                value = self._waiting.pop(name)
                if value.shape != own[name].shape:
                    raise ValueError(
                        f"{self._source} does not hold the parameters of this program: {name!r} is "
                        f"{list(value.shape)} there and {list(own[name].shape)} here. Build the "
                        "program as it was saved"
                    )
                own[name].copy_(value)

    def check_all_taken(self) -> None:
        """Refuse a file with values that belong to no parameter."""
        if self._waiting:
            names, self._waiting = sorted(self._waiting), {}
            raise ValueError(
                f"{self._source} does not hold the parameters of this program: it has no {names}. "
                "Build the program as it was saved"
            )

    @contextmanager
    def lent(self, role: str = "") -> Iterator[None]:
        """Lend the parameters to Pyro's store during a block.

        The block runs one half of the program. What it creates is adopted.
        """
        params, constraints = dict(self.site_parameters), dict(self._constraints)
        recorder = ModuleRecorder(self._known_modules.setdefault(role, {}), self._seen, self._place)
        watched = nullcontext() if self._sealed else recorder
        with (
            store_contents(params, constraints),
            pyro.settings.context(module_local_params=False),
            watched,
        ):
            yield
        self._borrowed += [
            name for name, module in recorder.modules.items() if self.adopt(name, module, role)
        ]
        self._adopt_new(params, constraints)

    def _adopt_new(self, params: dict[str, Any], constraints: dict[str, Any]) -> None:
        if params.keys() <= self._constraints.keys():
            return
        owned = {id(p) for p in self.parameters()}
        self._of_modules |= {name for name, value in params.items() if id(value) in owned}
        for name, value in params.items():
            if name in self._constraints or MODULE_DIVIDER in name or name in self._of_modules:
                continue
            if self._sealed:
                raise ValueError(
                    f"the program created parameter {name!r} on a later call; parameters must all "
                    "be created on the first call, because optimisers and checkpoints already "
                    "hold the others. Create it unconditionally"
                )
            self._register(name, value, constraints[name])

    def _register(self, name: str, value: Tensor, constraint: Any) -> None:
        parent, leaf = resolve_parent(self, name)
        parameter = (
            value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
        )
        parent._parameters[leaf] = parameter
        self._constraints[name] = constraint


class ScopedCallable(nn.Module):
    """Model or guide as a plain Pyro callable.

    It finds its parameters in its program's scope.

    It owns the scope, so that `.parameters()` of a model or guide is never empty; a plain
    `torch.nn.Module` announces its parameters to Pyro, so that `pyro.infer.SVI` sees them.
    """

    def __init__(self, name: str, fn: Callable, scope: ParameterScope) -> None:
        super().__init__()
        self.role = name
        self.scope = scope
        self._fn = (fn,)  # in a tuple: a module is registered once, in the scope
        if isinstance(fn, nn.Module):
            scope.adopt(name, fn)

    @property
    def fn(self) -> Callable:
        """The callable as its author wrote it."""
        return self._fn[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.scope.waiting:
            self._create(args, kwargs)
        with pyro_in_turn(), self.scope.lent(self.role), SizedPlates():
            self.scope.forget_values(self.role)
            if isinstance(self.fn, nn.Module) and not isinstance(self.fn, PyroModule):
                announce(self.role, self.fn)
            return self.fn(*args, **kwargs)

    def _create(self, args: tuple, kwargs: Any) -> None:
        """Create the parameters that a file has values for.

        The callable is run once, seen by no handler.
        """
        quiet = unmoved_generators(), torch.no_grad(), pyro.poutine.block()
        with (
            pyro_in_turn(),
            quiet[0],
            quiet[1],
            quiet[2],
            self.scope.lent(self.role),
            SizedPlates(),
        ):
            self.fn(*args, **kwargs)
        self.scope.take()


def announce(name: str, module: nn.Module) -> None:
    """Register a module's trainable parameters with Pyro.

    Unlike `pyro.module`, it does not warn of frozen ones.
    """
    for own, parameter in module.named_parameters():
        if parameter.requires_grad:
            pyro.param(param_with_module_name(name, own), parameter)
