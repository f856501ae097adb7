"""Every family on a second device: densities, draws, fits, estimates and files as on the CPU."""

from typing import Any

import pytest
import torch
from cases import CASES, Case
from second_device import DEVICE, is_there, moved
from torch import Tensor

from ppl_dgm import Program, fit, posterior
from ppl_dgm.evidence import ImportanceSampling

LACKING = {"recurrent net"}  # torch gives devices a fused cell, which the mirror has not
MADE_OF_HOST_TENSORS = {"vamp discretised-logistic vae"}
QUICK = {
    *("bayes net", "bernoulli vae", "spline flow-prior vae"),
    *("semi-supervised vae", "made", "nice"),
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in CASES
        if DEVICE.type != "mirror" or name not in LACKING
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


def placed(case: Case) -> tuple[Program, tuple, dict[str, Tensor]]:
    """A case's program, data and further arguments of draws on the device."""
    with torch.device("cpu"):
        program, data = case.make(), case.data()
    return (
        program.to(DEVICE),
        moved(data),
        dict(zip(case.given, moved(case.given.values()), strict=True)),
    )


def test_joint_densities_are_those_of_the_cpu(case: Case, device: torch.device) -> None:
    with torch.device("cpu"):
        program, data = case.make().eval(), case.data()
        values = program.bind(*data).draw(3).values
        expected = program.bind(*data).log_joint(values).total
    there = dict(zip(values, moved(values.values()), strict=True))
    found = program.to(device).bind(*moved(data)).log_joint(there).total
    assert is_there(found)
    assert torch.allclose(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_a_program_made_on_the_default_device_is_on_it(name: str, case: Case) -> None:
    if name in MADE_OF_HOST_TENSORS:
        pytest.skip("its maker is given tensors of the CPU")
    with torch.device("cpu"):
        data = moved(case.data())
    torch.set_default_device(DEVICE)
    try:
        program = case.make().initialise(*data)
        assert all(map(is_there, [*program.parameters(), *program.buffers()]))
    finally:
        torch.set_default_device(None)


def test_draws_follow_the_seed_of_the_device(case: Case, device: torch.device) -> None:
    program, _, given = placed(case)
    torch.manual_seed(1)
    first = program.sample(2, **given)
    torch.manual_seed(1)
    assert is_there(first)
    assert torch.equal(first, program.sample(2, **given))


def test_estimates_and_posteriors_stay_on_the_device(case: Case, device: torch.device) -> None:
    program, data, _ = placed(case)
    before = torch.get_device_module(device).get_rng_state(device)
    with torch.device("cpu"):  # the settings of a user who has not heard of devices
        found = ImportanceSampling(8)(program, *data)
    assert is_there(found.log_z)
    if program.bind(*data).structure.latents:
        found = posterior(program, *data, num_particles=8, num_draws=2)
        assert all(map(is_there, found.draws.values()))
    after = torch.get_device_module(device).get_rng_state(device)
    assert torch.equal(before, after)


def test_fits_run_on_the_device(case: Case, device: torch.device, tmp_path: Any) -> None:
    program, data, _ = placed(case)
    result = fit(program, data, steps=2, batch_size=3, compile=False, progress=False, seed=0)
    assert len(result.history["objective"]) == 2
    assert all(map(is_there, program.parameters()))
    program.save(tmp_path / "program.pt")
    with torch.device("cpu"):
        other = case.make()
    other.load(tmp_path / "program.pt")  # onto where the other is
    for ours, theirs in zip(program.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.cpu(), theirs)
