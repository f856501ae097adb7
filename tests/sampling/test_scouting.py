"""Peaks that few draws lead to: found at high levels of likelihood, and told of where missed."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_dgm import Program
from ppl_dgm.evidence import AdaptiveImportanceSampling, Laplace, auto
from ppl_dgm.program.isolation import evaluating
from ppl_dgm.sampling.climbing import climb
from ppl_dgm.sampling.memory import MEMORY
from ppl_dgm.sampling.reach import jointly_missed
from ppl_dgm.sampling.scouting import scouted_modes
from ppl_dgm.sampling.unconstrained import Unconstrained

FLOAT = torch.float64


def two_peaks(dims: int, half: float, wide: float, narrow: float, apart: float) -> Program:
    """A wide and a narrow normal in a box: 1 and 9 parts in 10 of a mass of one."""
    edge, centre = (torch.full((dims,), value, dtype=FLOAT) for value in (half, apart))

    def model() -> None:
        z = pyro.sample("z", dist.Uniform(-edge, edge).to_event(1))
        base = dist.Normal(0.0 * centre, wide).log_prob(z).sum(-1) + math.log(0.1)
        peak = dist.Normal(centre, narrow).log_prob(z).sum(-1) + math.log(0.9)
        pyro.factor("likelihood", torch.logaddexp(base, peak))

    return Program(model)


def truth(dims: int, half: float) -> float:
    return -dims * math.log(2 * half)


def target_of(program: Program) -> Unconstrained:
    with evaluating(program), torch.no_grad():
        return Unconstrained(program.bind())


def box_of(target: Unconstrained, points: Tensor) -> Tensor:
    return target.constrain(points)["z"]


def test_a_peak_that_no_climb_from_the_prior_reaches_is_found() -> None:
    torch.manual_seed(0)
    target = target_of(two_peaks(4, 10.0, 2.0, 0.03, 0.8))
    plain = box_of(target, climb(target.log_joint, target.sample_prior(100), 60))
    assert float((plain - 0.8).abs().amax(-1).min()) > 0.1
    found = box_of(target, scouted_modes(target, 800, MEMORY))
    assert float((found - 0.8).abs().amax(-1).min()) < 0.01
    assert float(found.abs().amax(-1).min()) < 0.01


def test_climbs_along_a_narrow_valley_reach_both_modes() -> None:
    """40 steps reached no mode of a density of ill condition: the search gave up without one."""
    scales = torch.logspace(-2.0, 0.0, 12, dtype=FLOAT)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.manual_seed(1)).double()).Q
    centre = torch.full((12,), 0.3, dtype=FLOAT)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(12, dtype=FLOAT), 1.0).to_event(1))
        above, below = (
            -0.5 * ((z - side * centre) @ turn / scales).square().sum(-1) for side in (1.0, -1.0)
        )
        pyro.factor("likelihood", torch.logaddexp(above, below))

    torch.manual_seed(0)
    target = target_of(Program(model))
    modes = scouted_modes(target, 200, MEMORY)
    assert len(modes)
    found = box_of(target, modes)
    assert {int(sign) for sign in (found @ centre).sign()} == {-1, 1}


def test_modes_with_few_draws_each_are_no_miss_where_many_came_near_some() -> None:
    """All 256 modes of signs in eight dimensions were told as missed by draws of the prior."""
    many = torch.tensor(256 * [0.5], dtype=FLOAT).log()
    assert jointly_missed(many).sum() == 5
    one = torch.tensor([200.0, 1e-3, math.inf, 150.0], dtype=FLOAT).log()
    assert jointly_missed(one).tolist() == [False, True, False, False]


def test_few_scouts_many_dimensions_and_data_of_their_own_are_left_out() -> None:
    wide = target_of(two_peaks(31, 5.0, 1.0, 0.5, 1.0))
    assert scouted_modes(wide, 100, MEMORY).shape == (0, 31)
    assert scouted_modes(target_of(two_peaks(2, 5.0, 1.0, 0.5, 1.0)), 15, MEMORY).shape == (0, 2)

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=FLOAT), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = Program(local)
    with evaluating(program), torch.no_grad():
        target = Unconstrained(program.bind(torch.zeros(3, dtype=FLOAT)))
    assert scouted_modes(target, 100, MEMORY).shape == (0, 3, 1)


def test_the_heaviest_draws_of_laplace_climb_to_what_starts_missed() -> None:
    program = two_peaks(2, 10.0, 2.0, 0.01, 1.0)
    found = Laplace(num_starts=4, screened=1, num_particles=20_000)(program, seed=1)
    assert int(found.diagnostics["num_modes"]) == 2
    assert abs(float(found.log_z) - truth(2, 10.0)) < 4 * float(found.std_error) < 0.1


def test_adaptive_mixtures_keep_the_modes_of_their_starts() -> None:
    program = two_peaks(3, 10.0, 1.0, 0.01, 5.0)
    target = target_of(program)
    starts = target.unconstrain({"z": torch.tensor([[0.0] * 3, [5.0] * 3], dtype=FLOAT)})
    settings = {"num_particles": 4000, "num_rounds": 1, "num_chains": 16}
    run = AdaptiveImportanceSampling(**settings, starts=starts)
    found = run(program, seed=0)
    assert abs(float(found.log_z) - truth(3, 10.0)) < 4 * float(found.std_error) < 0.2
    with pytest.raises(ValueError, match=r"starts are \(2, 2\); expected \[points, 3\]"):
        AdaptiveImportanceSampling(starts=starts[:, :2])(program)


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "half", "wide", "narrow", "apart"), [
    (10, 5.0, 0.6, 0.3, 1.5),
    (6, 6.0, 0.6, 0.2, 2.0),
    (5, 10.0, 2.0, 0.05, 0.45),
])  # fmt: skip
def test_narrow_peaks_that_carry_the_mass_are_found(
    dims: int, half: float, wide: float, narrow: float, apart: float
) -> None:
    """The number of two wide peaks alone was 2.3 nats too low, without alarm.

    A tenth of the searches in ten dimensions miss the narrow one still (docs/choosing.md).
    """
    right = 0
    for seed in range(3):
        found = auto(two_peaks(dims, half, wide, narrow, apart), seed=seed)
        off = abs(float(found.log_z) - truth(dims, half))
        right += found.reliable and off < 4 * float(found.std_error) + 0.02
    assert right >= 2
