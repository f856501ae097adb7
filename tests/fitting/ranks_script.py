"""What one rank does in the tests of several: fits and estimates, written to a folder."""

import os
import socket
import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.optim import SGD, Adam

import ppl_dgm
from ppl_dgm import Program, evidence, fit, objectives
from ppl_dgm.fitting import CheckpointFile
from ppl_dgm.pyro_state import import_dynamo

ODD = torch.linspace(-2, 3, 23)
COVARIATE = torch.linspace(0, 1, 23)


def line(x: Tensor, t: Tensor) -> None:
    """A regression with exact likelihood, one parameter of it unused."""
    slope = pyro.param("slope", torch.tensor(0.1))
    width = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(slope * t, width), obs=x)


def shared(x: Tensor) -> None:
    """One mean of all data."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def local(x: Tensor) -> None:
    """A latent of each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def centred(x: Tensor) -> None:
    """Data that cannot be divided: each depends on the mean of all."""
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)) + x.mean(), 1.0), obs=x)


def fitted_line(**settings):
    program = Program(line)
    defaults = {
        "steps": 30,
        "batch_size": 5,
        "optimizer": partial(SGD, lr=0.05, momentum=0.9),
        "clip_norm": 0.7,
        "valid": {"x": ODD[:7] + 0.3, "t": COVARIATE[:7]},
        "valid_every": 10,
        "seed": 3,
        "progress": False,
        "compile": False,
    }
    found = fit(program, {"x": ODD, "t": COVARIATE}, **{**defaults, **settings})
    return program, found


def fitted_mode():
    program = Program(shared, AutoDelta(shared))
    fit(program, ODD, steps=40, batch_size=4, optimizer=partial(Adam, lr=0.05), progress=False)
    return program


def fitted_vae():
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    program = ppl_dgm.families.VAE(6, 2, hidden=[8])
    x = (torch.arange(60).reshape(10, 6) % 3 == 0).float()
    found = fit(program, x, objectives.ELBO(), steps=12, batch_size=4, progress=False)
    return program, found


class Normed(torch.nn.Module):
    """Logits of bits, with running means and buffers that nothing changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = torch.nn.BatchNorm1d(6, momentum=0.3), torch.nn.Linear(6, 6)
        self.register_buffer("odd", torch.linspace(0.1, 0.7, 6))
        self.register_buffer("infinite", torch.tensor([-torch.inf, 0.0, torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)) * self.odd


def fitted_buffers():
    torch.manual_seed(1)
    net, x = Normed(), torch.randn(14, 6)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

    fit(Program(model), x, steps=9, batch_size=7, progress=False, compile=False)
    return net.state_dict()


def estimates():
    """Evidence by several estimators, with latents of each datum and of all."""
    x = ODD[:9]
    each = {
        "exact": evidence.Exact(),
        "importance": evidence.ImportanceSampling(2000),
        "auto": partial(evidence.auto, budget=200_000),
    }
    of_all = {
        "importance": evidence.ImportanceSampling(4000),
        "ais": evidence.AIS(num_temperatures=60, num_chains=32),
        "smc": evidence.SMC(num_particles=100, num_groups=16),
        "laplace": evidence.Laplace(num_particles=500),
        "elbo": evidence.ELBO(200),
    }
    found = {f"local {name}": run(Program(local), x) for name, run in each.items()}
    return found | {f"shared {name}": run(Program(shared), x) for name, run in of_all.items()}


def message(run) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def everything(folder: Path) -> dict:
    program, found = fitted_line()
    checkpoint = folder / "line.pt"
    fitted_line(steps=20, callbacks=[CheckpointFile(checkpoint, every=4)])
    resumed, _ = fitted_line(steps=30, checkpoint=checkpoint)
    halfway = folder / "half.pt"
    fitted_line(steps=20, checkpoint=halfway)
    vae, vae_fit = fitted_vae()
    return {
        "line": program.state_dict(),
        "history": found.history,
        "resumed": resumed.state_dict(),
        "mode": fitted_mode().state_dict(),
        "vae": vae.state_dict(),
        "vae history": vae_fit.history,
        "estimates": {
            name: (one.log_z, one.std_error, one.bound, one.digest, one.num_dims, one.warnings)
            for name, one in estimates().items()
        },
        "buffers": fitted_buffers(),
        "indivisible": message(lambda: fit(Program(centred), ODD, steps=1, progress=False)),
        "compiled": message(lambda: fitted_line(compile=True)),
    }


def act(target: Path) -> None:
    """Be one rank of the group that the environment names."""
    torch.distributed.init_process_group("gloo")
    torch.save(everything(target), target / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


def divide(target: Path) -> None:
    """Be two ranks, as torchrun makes them, but by a fork: imports are made once."""
    import_dynamo()
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    other = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if other else "1"
    act(target)
    if other:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))


if __name__ == "__main__":
    (act if "RANK" in os.environ else divide)(Path(sys.argv[1]))
