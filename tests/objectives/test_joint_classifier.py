"""A joint energy classifier, composed of what there is: Grathwohl et al. (2020), JEM.

Logits f(x)[y] of a classifier are read as minus the energy of (x, y): p(x) is proportional to
base(x) sum_y exp f(x)[y], and p(y | x) is the classifier itself. Its objective is the sum of
contrastive divergence for x and the log likelihood of labels given x.
"""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from ppl_dgm import fit
from ppl_dgm.evidence import AIS, Evidence
from ppl_dgm.families import Energy
from ppl_dgm.nn import MLP
from ppl_dgm.objectives import ContrastiveDivergence
from ppl_dgm.objectives.energies import DataDensity
from ppl_dgm.program import Program
from ppl_dgm.tasks import detect

CENTRES = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-1.0, -1.2]])


class LabelledEnergy(nn.Module):
    """An energy program that takes labels along, for an objective that knows them."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits
        self.energy = Energy(lambda x: -logits(x).logsumexp(-1), 2)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return self.energy.model(x)


class JointLikelihood(ContrastiveDivergence):
    """log p(x) by contrastive divergence, plus log p(y | x)."""

    def __init__(self, logits: nn.Module, k: int) -> None:
        super().__init__(k)
        self.logits = logits

    def contrast(self, density: DataDensity) -> Tensor:
        x, y = density.bound.args
        return super().contrast(density) + Categorical(logits=self.logits(x)).log_prob(y)


def blobs(size: int) -> tuple[Tensor, Tensor]:
    """Three round blobs and their labels."""
    y = torch.arange(size) % 3
    return CENTRES[y] + 0.35 * torch.randn(size, 2), y


@pytest.mark.slow
def test_one_net_classifies_scores_and_finds_anomalies() -> None:
    torch.manual_seed(0)
    logits, (x, y), (held_out, labels) = MLP(2, [32], 3), blobs(600), blobs(300)
    program = Program(LabelledEnergy(logits))
    adam = partial(torch.optim.Adam, lr=0.01)
    settings = {"steps": 250, "batch_size": 100, "optimizer": adam, "compile": False}
    fit(program, (x, y), JointLikelihood(logits, 5), progress=False, **settings)  # type: ignore[arg-type]
    accuracy = (logits(held_out).argmax(-1) == labels).double().mean()
    assert accuracy > 0.97
    density = program.model.fn.energy  # type: ignore[union-attr]
    method = AIS(num_temperatures=40, num_chains=50)

    def score(points: Tensor) -> Evidence:
        return method(density, points)

    found = score(held_out)
    one_normal = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    assert found.log_z.mean() > one_normal.log_prob(held_out).mean() + 0.3
    assert detect(found, score(3 * torch.randn(300, 2))).auroc > 0.85
