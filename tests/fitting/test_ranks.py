"""Fits and evidence that two processes make together, beside those of one.

The processes run once and write what they found: started by torchrun in the slow tests, by a fork
with the variables that torchrun sets in the fast ones, which saves two imports of torch.
"""

import math
import subprocess
import sys

import pytest
import ranks_script
import torch
import torch.distributed

from ppl_dgm.evidence import Evidence
from ppl_dgm.evidence.sharing import averaged, join_evidences
from ppl_dgm.ranks import Ranks, alone, ranks_now

gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
BY_TORCHRUN = pytest.param(TORCHRUN, marks=pytest.mark.slow, id="torchrun")


@pytest.fixture(scope="module", params=[pytest.param((), id="fork"), BY_TORCHRUN])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder, start = tmp_path_factory.mktemp("ranks"), request.param
    run = subprocess.run(
        [sys.executable, *start, ranks_script.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") | {"folder": folder} for rank in range(2)]


def close(found: dict, expected: dict, **how: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **how, msg=lambda m, n=name: f"{n}: {m}")


@gloo
def test_a_shared_fit_is_that_of_one_process(both) -> None:
    """Odd minibatches, momentum, clipping, validation: equal to rounding."""
    program, fit = ranks_script.fitted_line()
    close(both[0]["line"], program.state_dict(), rtol=1e-5, atol=1e-6)
    close(both[0]["history"], fit.history, rtol=1e-5, atol=1e-6)
    close(both[0]["mode"], ranks_script.fitted_mode().state_dict(), rtol=1e-5, atol=1e-6)


@gloo
@pytest.mark.parametrize("part", ["line", "mode", "vae", "resumed", "history"])
def test_all_ranks_have_the_same_result(both, part: str) -> None:
    close(both[1][part], both[0][part], rtol=0, atol=0)


@gloo
def test_ranks_draw_noise_of_their_own(both) -> None:
    """The same program from other noise: near the fit of one process, not equal to it."""
    _, alone_fit = ranks_script.fitted_vae()
    found, expected = (h["objective"] for h in (both[0]["vae history"], alone_fit.history))
    assert bool((found != expected).any())
    assert (found - expected).abs().mean() < 0.5


@gloo
def test_a_checkpoint_goes_on_with_any_number_of_ranks(both) -> None:
    close(both[0]["resumed"], both[0]["line"], rtol=0, atol=0)
    halfway = both[0]["folder"] / "half.pt"
    program, _ = ranks_script.fitted_line(checkpoint=halfway)
    close(program.state_dict(), both[0]["line"], rtol=1e-5, atol=1e-6)


@gloo
def test_evidence_of_parts_is_that_of_the_whole(both) -> None:
    alone = ranks_script.estimates()
    for name, (log_z, error, bound, digest, num_dims, warnings) in both[0]["estimates"].items():
        one = alone[name]
        assert (bound, digest, num_dims) == (one.bound, one.digest, one.num_dims), name
        assert not warnings, name
        torch.testing.assert_close(log_z, both[1]["estimates"][name][0], rtol=0, atol=0)
        if name.split()[0] == "local":
            truth = alone["local exact"].log_z
        else:
            truth = torch.distributions.MultivariateNormal(
                torch.zeros(9).double(), torch.eye(9).double() + 1
            ).log_prob(ranks_script.ODD[:9].double())
        if bound == "lower":
            assert log_z < truth
        else:
            assert bool(((log_z - truth).abs() < 4.5 * error + 1e-6).all()), name
        if error.sum() > 0:  # as many draws as one process makes, so as large an error
            ratio = (error.square().mean() / one.std_error.square().mean()).sqrt()
            assert 0.4 < ratio < 2.5, name


@gloo
def test_buffers_are_averaged_and_constants_stay(both) -> None:
    found, net = both[0]["buffers"], ranks_script.Normed()
    for name in ("odd", "infinite"):  # to the last bit: weights of 3/7 and 4/7 would not keep them
        assert torch.equal(found[name], getattr(net, name))
    assert bool((found["norm.running_mean"] != 0).all())
    close(both[1]["buffers"], found, rtol=0, atol=0)
    alone = ranks_script.fitted_buffers()  # means of halves average to the mean; variances do not
    torch.testing.assert_close(found["norm.running_mean"], alone["norm.running_mean"])


def evidence_of(log_z: list[float], error: float = 0.01, **diagnostics) -> Evidence:
    value = torch.tensor(log_z).double()
    error = torch.full_like(value, error)
    return Evidence(value, error, "estimate", "datum", "SMC", 1, "", diagnostics=diagnostics)


def test_joined_diagnostics_are_of_all_data() -> None:
    first = evidence_of([0.0, 1.0, 2.0], moved=torch.tensor([2]), rounding=3e-4)
    second = evidence_of([3.0, 4.0], moved=torch.tensor([0, 1]), rounding=4e-4)
    third = evidence_of([5.0], rounding=0.0)
    found = join_evidences(6, "all", [first, second, third])
    assert found.log_z.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.diagnostics["moved"].tolist() == [2, 3, 4]
    assert found.diagnostics["rounding"] == pytest.approx(5e-4)


def test_ranks_that_disagree_are_an_alarm() -> None:
    apart = [one.pooled() for one in (evidence_of([0.0]), evidence_of([0.6]))]
    near = [one.pooled() for one in (evidence_of([0.0]), evidence_of([0.03]))]
    assert any("two ranks" in warning for warning in averaged(apart).warnings)
    assert averaged(near).reliable
    assert averaged(near).log_z.exp() == pytest.approx((1 + math.exp(0.03)) / 2)


@gloo
def test_what_cannot_be_shared_is_refused(both) -> None:
    assert "2 processes share this fit" in both[0]["indivisible"]
    assert "2 processes share the fit" in both[1]["compiled"]


def test_without_a_group_there_is_one_rank() -> None:
    assert ranks_now() == Ranks(0, 1)
    with alone():
        assert ranks_now() == Ranks(0, 1)
    value = torch.ones(2)
    Ranks().sum_([value])
    assert value.tolist() == [1, 1]
    assert Ranks().gather(3) == [3]
    assert Ranks().first(3) == 3
    assert Ranks().most(2) == 2


@pytest.mark.parametrize("count", [0, 1, 7, 12])
def test_shares_cover_everything_once(count: int) -> None:
    shares = [list(range(count))[Ranks(rank, 5).share(count)] for rank in range(5)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
