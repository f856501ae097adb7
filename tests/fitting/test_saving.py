"""Fits on file: parameters and history come back, into programs that have not run yet too."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ppl_dgm import Fit, Program, evidence, fit
from ppl_dgm.conditionals.likelihoods import Gaussian
from ppl_dgm.families import VAE

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(3)) + 2


def statements(width: int = 3) -> Program:
    """A program whose parameters are made by statements: nets, and numbers with constraints."""
    encoder, decoder = nn.Linear(2, 2 * width), nn.Linear(width, 2)

    def model(x: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(width), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x: Tensor | None = None) -> None:
        assert x is not None
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide)


MAKERS = {"statements": statements, "modules": lambda width=3: VAE(2, width, (4,), Gaussian(0.5))}


def learned(program: Program, **settings: object) -> Fit:
    return fit(program, X, steps=6, valid=X[:4], valid_every=2, progress=False, **settings)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_fit_comes_back(make, tmp_path: Path) -> None:
    result = learned(make())
    result.save(tmp_path / "fit.safetensors")
    again = Fit.load(tmp_path / "fit.safetensors", make())
    assert (again.steps, again.stopped, again.notes) == (6, result.stopped, result.notes)
    assert result.history.keys() == again.history.keys()
    assert all(torch.equal(result.history[name], again.history[name]) for name in result.history)
    estimator = evidence.ImportanceSampling(100)
    first, second = estimator(result.program, X), estimator(again.program, X)
    assert torch.equal(first.log_z, second.log_z)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.safetensors"]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", ["save", "fit", "checkpoint"])
def test_programs_load_every_kind_of_file_before_they_have_run(make, kind, tmp_path: Path) -> None:
    path = tmp_path / "file"
    result = learned(make(), **({"checkpoint": path} if kind == "checkpoint" else {}))
    {"save": result.program.save, "fit": result.save}.get(kind, lambda path: None)(path)
    fresh = make().load(path)
    first, second = (p.model.forward for p in (result.program, fresh))
    traces = [pyro.poutine.trace(run).get_trace(X) for run in (first, second)]
    assert torch.equal(
        traces[0].nodes["x"]["fn"].base_dist.scale, traces[1].nodes["x"]["fn"].base_dist.scale
    )
    fresh.initialise(X)
    for name, value in result.program.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_other_libraries_read_the_parameters(tmp_path: Path) -> None:
    result = learned(statements())
    result.save(tmp_path / "fit.safetensors")
    found = safetensors.torch.load_file(tmp_path / "fit.safetensors")
    assert torch.equal(
        found["program/decoder.weight"], result.program.state_dict()["decoder.weight"]
    )


def test_files_of_other_programs_and_changed_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    learned(statements()).save(path)
    with pytest.raises(ValueError, match="does not hold the parameters of this program"):
        statements(4).load(path).initialise(X)
    with pytest.raises(ValueError, match="does not hold the parameters"):
        MAKERS["modules"]().load(path).initialise(X)
    learned(MAKERS["modules"]()).save(path)
    with pytest.raises(ValueError, match="does not hold the parameters"):
        MAKERS["modules"](5).load(path)
    learned(statements()).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="was changed since it was written"):
        statements().load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="no file of a fit"):
        Fit.load(path, statements())


def test_resume_insists_or_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "progress.pt"
    with pytest.raises(ValueError, match="there is no file"):
        learned(statements(), checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="there is no checkpoint"):
        learned(statements(), resume=True)
    torch.manual_seed(0)
    program = statements()
    whole = fit(program, X, steps=8, checkpoint=path, progress=False)
    torch.manual_seed(0)
    again = fit(statements(), X, steps=8, checkpoint=path, resume=True, progress=False)
    assert torch.equal(again.history["objective"], whole.history["objective"])
    anew = fit(program, X, steps=8, checkpoint=path, resume=False, progress=False)
    assert anew.history["objective"][0] > whole.history["objective"][0]  # from where the program is
