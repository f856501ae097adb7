"""Speed of training steps of flows, beside bare torch and zuko.

    python benchmarks/speed_flows.py [--rounds 15]

One step of Adam of a MAF and of a RealNVP of 64 dimensions, five transforms with nets (128, 128),
batch 256, one thread. Rounds go through all contenders in turn; the table has medians over rounds,
of processor time and of its ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import zuko
from provenance import provenance
from rows import markdown
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_dgm.compile.train_step import TrainStep
from ppl_dgm.families import MAF, Flow, RealNVP
from ppl_dgm.nn.masked import autoregressive_masks
from ppl_dgm.objectives import ELBO

PAGE = Path(__file__).parent / "results" / "speed_flows.md"
D, BATCH, LENGTH, HIDDEN, RATE, CALLS = 64, 256, 5, (128, 128), 1e-3, 10
Step = Callable[[Tensor], object]


class BareMAF(nn.Module):
    """Masked autoregressive flow, as one writes it in torch."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (D, *HIDDEN, 2 * D)
        masks = autoregressive_masks(D, HIDDEN)
        self.nets = nn.ModuleList(
            nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes)) for _ in range(LENGTH)
        )
        masks[-1] = masks[-1].repeat(2, 1)  # shifts, then log-scales
        for place, mask in enumerate(masks):
            self.register_buffer(f"mask{place}", mask.float())

    def forward(self, x: Tensor) -> Tensor:
        """log p(x)."""
        log_det = x.new_zeros(len(x))
        for net in self.nets:
            h = x
            for place, layer in enumerate(net):  # type: ignore[arg-type]
                h = F.linear(
                    h.relu() if place else h,
                    layer.weight * self.get_buffer(f"mask{place}"),
                    layer.bias,
                )
            shift, log_scale = h.chunk(2, -1)
            log_scale = log_scale.tanh()
            x = ((x - shift) * (-log_scale).exp()).flip(-1)
            log_det = log_det - log_scale.sum(-1)
        return log_det + normal(x)


class BareRealNVP(nn.Module):
    """Affine couplings, as one writes them in torch."""

    def __init__(self) -> None:
        super().__init__()
        half = D // 2
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(half, HIDDEN[0]),
                nn.ReLU(),
                nn.Linear(*HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN[1], D),
            )
            for _ in range(LENGTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """log p(x)."""
        log_det = x.new_zeros(len(x))
        for net in self.nets:
            kept, moved = x.chunk(2, -1)
            shift, log_scale = net(kept).chunk(2, -1)
            log_scale = log_scale.tanh()
            x = torch.cat([(moved - shift) * (-log_scale).exp(), kept], -1)
            log_det = log_det - log_scale.sum(-1)
        return log_det + normal(x)


def normal(z: Tensor) -> Tensor:
    """Standard normal log density up to a constant."""
    return -0.5 * z.square().sum(-1)


def torch_step(parameters: Sequence[nn.Parameter], log_prob: Callable[[Tensor], Tensor]) -> Step:
    """A step of torch's own fused Adam."""
    optimizer = torch.optim.Adam(parameters, RATE, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        (-log_prob(x).mean()).backward()
        optimizer.step()

    return step


def bare(module: nn.Module) -> Step:
    """A step of a plain torch module."""
    return torch_step(list(module.parameters()), module)


def by_zuko(flow: nn.Module) -> Step:
    """A step of a flow of zuko."""
    return torch_step(list(flow.parameters()), lambda x: flow().log_prob(x))


def ours(flow: Flow, x: Tensor) -> Step:
    """A compiled step of a program, as `fit` makes it."""
    loss = partial(ELBO().differentiable_loss, flow.initialise(x).model, flow.guide)
    return TrainStep(loss, torch.optim.Adam(flow.parameters(), RATE))


def contenders(x: Tensor) -> dict[str, dict[str, Step]]:
    """Steps by flow and contender."""
    settings = {"transforms": LENGTH, "hidden_features": HIDDEN}
    return {
        "MAF": {
            "zuko": by_zuko(zuko.flows.MAF(D, **settings)),
            "torch": bare(BareMAF()),
            "ours, compiled": ours(MAF(D, LENGTH, HIDDEN), x),
        },
        "RealNVP": {
            "zuko": by_zuko(zuko.flows.RealNVP(D, **settings)),
            "torch": bare(BareRealNVP()),
            "ours, compiled": ours(RealNVP(D, LENGTH, HIDDEN), x),
        },
    }


def milliseconds(step: Step, x: Tensor) -> float:
    """Processor time of a step."""
    begun = time.process_time()
    for _ in range(CALLS):
        step(x)
    return (time.process_time() - begun) / CALLS * 1e3


def measured(name: str, steps: dict[str, Step], x: Tensor, rounds: int) -> list[str]:
    """The row of a flow."""
    for step in steps.values():
        milliseconds(step, x)
    found = [{key: milliseconds(step, x) for key, step in steps.items()} for _ in range(rounds)]
    times = [statistics.median(one[key] for one in found) for key in steps]
    ratios = [
        statistics.median(one["ours, compiled"] / one[key] for one in found)
        for key in ("torch", "zuko")
    ]
    return [name, *(f"{value:.2f}" for value in times), *(f"{value:.2f}" for value in ratios)]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(BATCH, D)
    rows = [measured(name, steps, x, asked.rounds) for name, steps in contenders(x).items()]
    head = ["", "zuko, ms", "torch, ms", "ours, compiled, ms", "ours / torch", "ours / zuko"]
    note = (
        f"Median milliseconds of processor time of a step of Adam, {D} dimensions, batch {BATCH}, "
        f"{LENGTH} transforms with nets {HIDDEN}; ratios are medians over {asked.rounds} rounds of "
        f"{CALLS} steps. Torch: the same masks and couplings without any framework, fused Adam. "
        f"zuko {zuko.__version__}. Ours is the compiled step of `fit`, its `ActNorm`s included."
    )
    page = ["# Speed of flows", note, markdown(head, rows), provenance("0")]
    PAGE.write_text("\n\n".join(page) + "\n")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
