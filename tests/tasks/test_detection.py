"""AUROC against its definition, its error against simulation."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.evidence import Evidence, Exact, ImportanceSampling
from ppl_dgm.tasks import detect
from ppl_dgm.tasks.detection import auroc_std_error


def standard(x=None):
    with pyro.plate("data", 1 if x is None else len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def result(log_z, **changes):
    settings = {
        "bound": "exact",
        "target": "datum",
        "estimator": "Exact",
        "num_dims": log_z.numel(),
        "digest": "",
    }
    return Evidence(log_z.double(), torch.zeros_like(log_z).double(), **{**settings, **changes})


def test_auroc_is_the_probability_of_ranking_an_anomaly_higher():
    usual, foreign = torch.randn(60), 1.0 + 2 * torch.randn(40)
    exact = Exact()
    found = detect(exact(Program(standard), usual), exact(Program(standard), foreign))
    surprise = [-dist.Normal(0.0, 1.0).log_prob(x) for x in (usual, foreign)]
    wins = (surprise[1].unsqueeze(1) > surprise[0]).double().mean().item()
    assert found.auroc == pytest.approx(wins)
    assert torch.allclose(found.scores, torch.cat(surprise).double())
    assert found.labels.tolist() == [False] * 60 + [True] * 40
    false_rate, true_rate = found.roc
    assert torch.trapezoid(true_rate, false_rate).item() == pytest.approx(wins)
    order = found.scores.argsort(descending=True)
    precision = found.labels[order].double().cumsum(0) / torch.arange(1, 101)
    assert found.average_precision == pytest.approx(precision[found.labels[order]].mean().item())


def test_standard_error_matches_simulation():
    areas = []
    for _ in range(400):
        usual, foreign = torch.randn(50), torch.randn(40) + 1
        areas.append((foreign.unsqueeze(1) > usual).double().mean())
    areas = torch.stack(areas)
    assert auroc_std_error(areas.mean().item(), 40, 50) == pytest.approx(
        areas.std().item(), rel=0.15
    )


def test_perfect_separation_of_two_pairs_is_no_certainty():
    found = detect(result(torch.tensor([0.0, -1.0])), result(torch.tensor([-5.0, -6.0])))
    assert (found.auroc, found.average_precision) == (1.0, 1.0)
    assert 0.1 < found.std_error < 0.3
    assert repr(found) == "Detection(AUROC 1.000 +- 0.24, 2 anomalies)"


GOOD = torch.tensor([0.0, -1.0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result(GOOD, target="dataset"), "data set as a whole"),
        (result(GOOD, estimator="ImportanceSampling"), "same program, estimator"),
        (result(GOOD, num_dims=20), "10, by Exact"),
        (result(torch.tensor([0.0, -math.inf])), "not finite"),
    ],
)
def test_scores_that_do_not_compare(other, message):
    with pytest.raises(ValueError, match=message):
        detect(result(GOOD), other)


def test_estimated_evidence_will_do():
    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    estimator = ImportanceSampling(num_particles=500)
    program = Program(model)
    found = detect(estimator(program, torch.zeros(20)), estimator(program, torch.full((10,), 4.0)))
    assert found.auroc == 1.0


@pytest.mark.parametrize(("anomaly", "auroc"), [(0.0, 0.0), (9.0, 1.0)])
def test_one_anomaly_leaves_the_area_uncertain(anomaly, auroc):
    usual = torch.linspace(1.0, 3.0, 50)
    exact, program = Exact(), Program(standard)
    found = detect(exact(program, usual), exact(program, torch.tensor([anomaly])))
    assert found.auroc == auroc
    assert 0.1 < found.std_error < 0.3
    many = detect(exact(program, usual), exact(program, torch.full((50,), anomaly)))
    assert 0 < many.std_error < 0.05


def test_alarms_of_either_evidence_are_kept():
    usual, odd = result(torch.tensor([-1.0, -2.0])), result(torch.tensor([-3.0]), warnings=("k",))
    assert detect(usual, odd).warnings == ("k",)
    assert "UNRELIABLE: k" in repr(detect(usual, odd))
    assert detect(usual, result(torch.tensor([-3.0]))).warnings == ()
