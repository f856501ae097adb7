"""Optimisers written as tensor code for compiled training steps.

A whole training step is one graph. The optimisers' state is torch's own.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from ppl_dgm.compile.errors import CaptureError
from ppl_dgm.compile.update_rules import RULES, Group, SGDRule, StateTensors

__all__ = ["GraphOptimiser"]


@dataclass
class Cohort:
    """Parameters of one group with equal step counts.

    So they share their rates.
    """

    group: Group
    parameters: list[torch.Tensor]
    step: int


class GraphOptimiser:
    """Torch optimiser whose step can be part of a graph.

    Parameters and state stay torch's and are changed in place.

    The number of steps is counted on the host and written to torch's state when somebody looks:
    `state_dict`, a step of torch's own, `load_state_dict`. So compiled and eager steps may
    alternate, and checkpoints are torch's.

    Attributes:
        cohorts: the parameters, by their rates; a checkpoint may split, join or rearrange them.
        arrangement: the parameters of each cohort, by identity.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        rule = RULES.get(type(optimizer))
        if rule is None:
            known = ", ".join(kind.__name__ for kind in RULES)
            raise CaptureError(
                f"{type(optimizer).__name__} cannot be part of a compiled step. Use one of "
                f"torch.optim's {known}, or run with compile=False."
            )
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise CaptureError(
                "an optimiser with differentiable=True cannot be compiled. Leave it at False."
            )
        self.optimizer, self.rule = optimizer, rule
        self.parameters = [parameter for _, parameter in self._members()]
        if not self.parameters:
            raise ValueError(
                "the optimiser holds no parameter that requires a gradient; give it the program's "
                "parameters"
            )
        self._states = {
            parameter: self._state(group, parameter) for group, parameter in self._members()
        }
        self._form = self._present_form()
        self._moved = {parameter for parameter in self.parameters if self._steps_made(parameter)}
        self._arrange()
        self._watch()

    @property
    def size(self) -> int:
        """Number of entries of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def is_current(self) -> bool:
        """Return whether torch's optimiser still has the same configuration.

        It trains the same parameters, and its groups have the same settings on and off.
        """
        return self._present_form() == self._form

    def rates(self) -> list[float]:
        """Advance by one step and return that step's numbers.

        They are in one list, cohort after cohort.
        """
        numbers: list[float] = []
        # How torch's schedulers see a step:
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        for cohort in self.cohorts:
            cohort.step += 1
            numbers += self.rule.rates(cohort.group, cohort.step)
        return numbers

    def table(self, count: int, between: Callable[[], Any] | None = None) -> np.ndarray:
        """Advance by `count` steps and return their numbers `[count, n]`.

        The present learning rates hold for all of these steps, unless `between` changes them after
        each one.
        """
        if between is not None:
            numbers = []
            for _ in range(count):
                numbers.append(self.rates())
                between()
            return np.array(numbers)
        columns: list[Any] = []
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        for cohort in self.cohorts:
            columns += self.rule.rates(cohort.group, cohort.step + np.arange(1.0, count + 1.0))
            cohort.step += count
        return np.stack([np.broadcast_to(column, count) for column in columns], 1)

    def take_back(self, count: int) -> None:
        """Take steps back that were counted and not made."""
        for cohort in self.cohorts:
            cohort.step -= count

    def move(
        self,
        gradients: dict[torch.Tensor, torch.Tensor],
        rates: torch.Tensor,
        sound: torch.Tensor | None = None,
    ) -> None:
        """Move every parameter that has a gradient, in place.

        Args:
            gradients: by parameter.
            rates: the numbers of `rates()` as a tensor `[n]`.
            sound: `[]`, boolean; where it is False nothing moves.
        """
        width = rates.shape[0] // len(self.cohorts)
        for cohort, own in zip(self.cohorts, rates.split(width), strict=True):
            for parameter in cohort.parameters:
                if parameter in gradients:
                    self._move(parameter, gradients[parameter], own, cohort.group, sound)

    def _move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        rates: torch.Tensor,
        group: Group,
        sound: Any,
    ) -> None:
        gradient = -gradient if group["maximize"] else gradient
        wide = torch.promote_types(
            parameter.dtype, torch.float32
        )  # in half precision a rate of 0.999 is 1
        state = self._states[parameter]
        widened = {name: tensor.to(wide) for name, tensor in state.items()}
        numbers = rates.to(wide).unbind()
        new, new_state = self.rule.move(
            parameter.to(wide), gradient.to(wide), widened, numbers, group
        )
        for old, value in [
            (parameter, new),
            *((state[name], value) for name, value in new_state.items()),
        ]:
            old.copy_(value if sound is None else torch.where(sound, value, old))
        self._moved.add(parameter)

    def flush(self) -> None:
        """Write step counts and state tensors to torch's optimiser.

        Only parameters that have moved are written.
        """
        for cohort in self.cohorts:
            moved = [
                parameter
                for parameter in cohort.parameters
                if parameter in self._moved and cohort.step
            ]
            for parameter in moved:
                self._write(cohort, parameter)

    def _write(self, cohort: Cohort, parameter: torch.Tensor) -> None:
        if self._states[parameter]:
            self.optimizer.state[parameter].update(self._states[parameter])
        if not isinstance(self.rule, SGDRule):
            state = self.optimizer.state[parameter]
            state["step"] = _counter(state.get("step"), cohort, parameter)

    def reload(self) -> None:
        """Read step counts and state tensors from torch's optimiser.

        They are copied into the tensors that the graph knows.
        """
        for parameter, own in self._states.items():
            theirs = self.optimizer.state.get(parameter, {})
            for name, tensor in own.items():
                if theirs.get(name) is None:
                    tensor.zero_()
                elif theirs[name] is not tensor:
                    tensor.copy_(theirs[name])
                    theirs[name] = tensor
        self._arrange()

    def _members(self) -> list[tuple[Group, torch.Tensor]]:
        return [
            (group, p)
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    def _present_form(self) -> list[Any]:
        return [
            (
                [bool(group[name]) for name in self.rule.switches],
                [id(p) for p in group["params"] if p.requires_grad],
            )
            for group in self.optimizer.param_groups
        ]

    def _state(self, group: Group, parameter: torch.Tensor) -> StateTensors:
        theirs = self.optimizer.state.get(parameter, {})
        found = {name: theirs.get(name) for name in self.rule.names(group)}
        return {name: torch.zeros_like(parameter) if t is None else t for name, t in found.items()}

    def _arrange(self) -> None:
        self.cohorts = self._cohorts()
        self.arrangement = tuple(tuple(map(id, cohort.parameters)) for cohort in self.cohorts)

    def _cohorts(self) -> list[Cohort]:
        cohorts: dict[tuple[int, int], Cohort] = {}
        for group, parameter in self._members():
            step = self._steps_made(parameter)
            cohort = cohorts.setdefault((id(group), step), Cohort(group, [], step))
            cohort.parameters.append(parameter)
        return list(cohorts.values())

    def _steps_made(self, parameter: torch.Tensor) -> int:
        state = self.optimizer.state.get(parameter, {})
        if isinstance(self.rule, SGDRule):
            return int(state.get("momentum_buffer") is not None)
        return int(state.get("step", 0))

    def _watch(self) -> None:
        this = weakref.ref(self)

        def flush(*_: Any) -> None:
            if (own := this()) is not None:
                own.flush()

        def reload(*_: Any) -> None:
            if (own := this()) is not None:
                own.reload()

        self.optimizer.register_state_dict_pre_hook(flush)
        self.optimizer.register_step_pre_hook(flush)
        self.optimizer.register_step_post_hook(reload)
        self.optimizer.register_load_state_dict_post_hook(reload)


def _counter(present: torch.Tensor | None, cohort: Cohort, parameter: torch.Tensor) -> torch.Tensor:
    if present is not None:
        return present.fill_(cohort.step)
    on_device = cohort.group.get("capturable") or cohort.group.get("fused")
    return torch.tensor(float(cohort.step), device=parameter.device if on_device else "cpu")
