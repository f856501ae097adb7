"""Update rules of torch's optimisers, as tensor code."""

from typing import Any, ClassVar

import torch
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop

__all__ = ["RULES", "Group", "SGDRule", "StateTensors"]

Group = dict[str, Any]
StateTensors = dict[str, torch.Tensor]
Moved = tuple[torch.Tensor, StateTensors]


class Rule:
    """How one optimiser moves one parameter.

    To add one: name the tensors that torch's class keeps per parameter, name the settings of a
    group that are on or off (`switches`; a number is on unless it is zero), say which numbers there
    are (`rates`, computed on the host in double precision at every step), and compute the new
    values (`move`) from the rates and the switches alone.
    """

    kept: ClassVar[tuple[str, ...]] = ()
    switches: ClassVar[tuple[str, ...]] = ("maximize",)

    def names(self, group: Group) -> tuple[str, ...]:
        """Return the names of the state tensors of a group.

        These are the tensors of the parameter's shape in torch's state.
        """
        return self.kept

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the numbers that a given step needs.

        `step` is 1, 2, ..., or an array of steps, which gives rows of numbers.
        """
        raise TypeError(f"{type(self).__name__} must define rates")

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Compute the new parameter and its new state tensors.

        The state tensors are given by name.
        """
        raise TypeError(f"{type(self).__name__} must define move")


class AdamRule(Rule):
    r"""Update rule of Adam and AdamW.

    $\theta \leftarrow \theta - \alpha \hat m / (\sqrt{\hat v} + \epsilon)$ (Kingma and Ba, 2015,
    algorithm 1).

    Decoupled weight decay makes $\theta \leftarrow (1 - \alpha \lambda) \theta$ first (Loshchilov
    and Hutter, 2019, algorithm 2).
    """

    kept = ("exp_avg", "exp_avg_sq")
    switches = ("maximize", "weight_decay", "decoupled_weight_decay", "amsgrad")

    def names(self, group: Group) -> tuple[str, ...]:
        """Return torch's names of the state tensors.

        AMSGrad keeps the maximum of the second moment too.
        """
        return (*self.kept, "max_exp_avg_sq") if group["amsgrad"] else self.kept

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the numbers that a step of Adam needs.

        These are the step size with bias correction, the scale of the second moment, both betas,
        epsilon and the decay.
        """
        rate, (first, second), decay = (
            float(group["lr"]),
            map(float, group["betas"]),
            float(group["weight_decay"]),
        )
        if group["decoupled_weight_decay"]:
            decay = 1.0 - rate * decay
        return [
            rate / (1.0 - first**step),
            (1.0 - second**step) ** -0.5,
            first,
            second,
            group["eps"],
            decay,
        ]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update both moments and the parameter."""
        size, scale, first, second, epsilon, decay = rates
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            parameter = parameter * decay
        elif group["weight_decay"]:
            gradient = gradient + decay * parameter
        mean = state["exp_avg"] + (gradient - state["exp_avg"]) * (1.0 - first)
        square = state["exp_avg_sq"] * second + gradient * gradient * (1.0 - second)
        new = {"exp_avg": mean, "exp_avg_sq": square}
        if group["amsgrad"]:
            square = new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], square)
        return parameter - size * mean / (square.sqrt() * scale + epsilon), new


class SGDRule(Rule):
    r"""Update rule of `torch.optim.SGD`.

    $b \leftarrow \mu b + (1 - \tau) g$, $\theta \leftarrow \theta - \alpha b$.
    """

    switches = ("maximize", "weight_decay", "momentum", "nesterov")

    def names(self, group: Group) -> tuple[str, ...]:
        """Return the momentum buffer's name, where there is momentum."""
        return ("momentum_buffer",) if group["momentum"] else ()

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the numbers that a step of SGD needs.

        These are the learning rate, the momentum, the weight of the gradient (the first step is not
        dampened) and the decay.
        """
        undampened = 1.0 - group["dampening"] * (step > 1)
        return [
            float(group["lr"]),
            float(group["momentum"]),
            undampened,
            float(group["weight_decay"]),
        ]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update the momentum buffer and the parameter."""
        size, momentum, weight, decay = rates
        gradient = decayed(gradient, parameter, decay, group)
        if not group["momentum"]:
            return parameter - size * gradient, {}
        buffer = state["momentum_buffer"] * momentum + gradient * weight
        gradient = gradient + momentum * buffer if group["nesterov"] else buffer
        return parameter - size * gradient, {"momentum_buffer": buffer}


class AdagradRule(Rule):
    r"""Update rule of `torch.optim.Adagrad`.

    $s \leftarrow s + g^2$, $\theta \leftarrow \theta - \alpha_t g / (\sqrt s + \epsilon)$ (Duchi,
    Hazan and Singer, 2011).
    """

    kept = ("sum",)
    switches = ("maximize", "weight_decay")

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the step size, epsilon and the decay."""
        size = float(group["lr"]) / (1.0 + (step - 1.0) * group["lr_decay"])
        return [size, group["eps"], float(group["weight_decay"])]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update the sum of squares and the parameter."""
        size, epsilon, decay = rates
        gradient = decayed(gradient, parameter, decay, group)
        total = state["sum"] + gradient * gradient
        return parameter - size * gradient / (total.sqrt() + epsilon), {"sum": total}


class RMSpropRule(Rule):
    r"""Update rule of `torch.optim.RMSprop`.

    $v \leftarrow \alpha v + (1 - \alpha) g^2$, and $g / (\sqrt v + \epsilon)$ moves the parameter,
    or its buffer of momentum (Tieleman and Hinton, 2012). Centred, v less the squared mean counts.
    """

    switches = ("maximize", "weight_decay", "momentum", "centered")

    def names(self, group: Group) -> tuple[str, ...]:
        """Return torch's names of the state tensors."""
        momentum = ("momentum_buffer",) if group["momentum"] else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the step size, the memory, epsilon, momentum and decay."""
        return [float(group[key]) for key in ("lr", "alpha", "eps", "momentum", "weight_decay")]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update the moments, the momentum buffer and the parameter."""
        size, memory, epsilon, momentum, decay = rates
        gradient = decayed(gradient, parameter, decay, group)
        square = state["square_avg"] * memory + gradient * gradient * (1.0 - memory)
        new, spread = {"square_avg": square}, square
        if group["centered"]:
            mean = state["grad_avg"] + (gradient - state["grad_avg"]) * (1.0 - memory)
            new["grad_avg"], spread = mean, square - mean * mean
        change = gradient / (spread.sqrt() + epsilon)
        if group["momentum"]:
            change = new["momentum_buffer"] = state["momentum_buffer"] * momentum + change
        return parameter - size * change, new


class AdadeltaRule(Rule):
    r"""Update rule of `torch.optim.Adadelta`.

    $\Delta = g \sqrt{u + \epsilon} / \sqrt{v + \epsilon}$ with moving averages v of $g^2$ and u of
    $\Delta^2$, $\theta \leftarrow \theta - \alpha \Delta$ (Zeiler, 2012).
    """

    kept = ("square_avg", "acc_delta")
    switches = ("maximize", "weight_decay")

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the step size, the memory, epsilon and the decay."""
        return [float(group[key]) for key in ("lr", "rho", "eps", "weight_decay")]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update both averages and the parameter."""
        size, memory, epsilon, decay = rates
        gradient = decayed(gradient, parameter, decay, group)
        square = state["square_avg"] * memory + gradient * gradient * (1.0 - memory)
        change = gradient * ((state["acc_delta"] + epsilon) / (square + epsilon)).sqrt()
        changes = state["acc_delta"] * memory + change * change * (1.0 - memory)
        return parameter - size * change, {"square_avg": square, "acc_delta": changes}


class AdamaxRule(Rule):
    r"""Update rule of `torch.optim.Adamax`.

    $u \leftarrow \max(\beta_2 u, |g| + \epsilon)$, $\theta \leftarrow \theta - \alpha \hat m / u$
    (Kingma and Ba, 2015, algorithm 2).
    """

    kept = ("exp_avg", "exp_inf")
    switches = ("maximize", "weight_decay")

    def rates(self, group: Group, step: Any) -> list[Any]:
        """Return the step size, both betas, epsilon and the decay."""
        first, second = map(float, group["betas"])
        size = float(group["lr"]) / (1.0 - first**step)
        return [size, first, second, group["eps"], float(group["weight_decay"])]

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: StateTensors,
        rates: Any,
        group: Group,
    ) -> Moved:
        """Update the mean, the largest gradient and the parameter."""
        size, first, second, epsilon, decay = rates
        gradient = decayed(gradient, parameter, decay, group)
        mean = state["exp_avg"] + (gradient - state["exp_avg"]) * (1.0 - first)
        largest = torch.maximum(state["exp_inf"] * second, gradient.abs() + epsilon)
        return parameter - size * mean / largest, {"exp_avg": mean, "exp_inf": largest}


def decayed(
    gradient: torch.Tensor, parameter: torch.Tensor, decay: Any, group: Group
) -> torch.Tensor:
    """Add the gradient of an L2 penalty, if any."""
    return gradient + decay * parameter if group["weight_decay"] else gradient


RULES: dict[type[Optimizer], Rule] = {
    Adam: AdamRule(),
    AdamW: AdamRule(),
    SGD: SGDRule(),
    Adagrad: AdagradRule(),
    RMSprop: RMSpropRule(),
    Adadelta: AdadeltaRule(),
    Adamax: AdamaxRule(),
}
