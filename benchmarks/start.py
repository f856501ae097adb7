"""What a user waits for at first: imports, the command line, a first fit from end to end.

    python benchmarks/start.py [--rounds 5] [--jax-python PYTHON]

Every run is a process of its own, and counts its processor time and that of its children, which
other work on the machine hardly changes; ratios are medians over rounds of adjacent runs.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from provenance import provenance
from rows import markdown

PAGE = Path(__file__).parent / "results" / "start.md"
COMMAND = "from ppl_dgm.cli import main; main([{!r}])"
DATA = """
effects = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
errors = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
"""
SCHOOLS = """
def model(y, sigma):
    mu = {ppl}.sample("mu", dist.Normal(0.0, 5.0))
    tau = {ppl}.sample("tau", dist.HalfCauchy(5.0))
    with {ppl}.plate("schools", 8):
        theta = {ppl}.sample("theta", dist.Normal(mu, tau))
        {ppl}.sample("y", dist.Normal(theta, sigma), obs=y)
"""
TORCH = f"""
import pyro, torch, pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
{DATA}{SCHOOLS.format(ppl="pyro")}
guide = AutoNormal(model)
y, sigma = torch.tensor(effects), torch.tensor(errors)
"""
OURS = f"""{TORCH}
from ppl_dgm import Program, fit
adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
fit(Program(model, guide, site="y"), (y, sigma), steps=200, optimizer=adam, progress=False)
"""
PYRO = f"""{TORCH}
from pyro.infer import SVI, Trace_ELBO
svi = SVI(model, guide, pyro.optim.Adam({{"lr": 0.01}}), Trace_ELBO())
for _ in range(200):
    svi.step(y, sigma)
"""
NUMPYRO = f"""
import jax, numpyro, numpyro.distributions as dist
from jax import numpy as jnp
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
{DATA}{SCHOOLS.format(ppl="numpyro")}
svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.01), Trace_ELBO())
svi.run(jax.random.PRNGKey(0), 200, jnp.array(effects), jnp.array(errors), progress_bar=False)
"""


def seconds(python: str, code: str) -> float:
    """Processor time of a process that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def contenders(jax_python: str | None) -> dict[str, list[tuple[str, str, str]]]:
    """What is compared, by what it is compared to: name, interpreter and code."""
    own = sys.executable
    names = "Program, compare, evidence, families, fit, objectives, posterior"
    imports = [
        ("import ppl_dgm", own, "import ppl_dgm"),
        ("from ppl_dgm import Program, fit", own, "from ppl_dgm import Program, fit"),
        ("the same and compare, evidence, families, ...", own, f"from ppl_dgm import {names}"),
        ("ppl-dgm --version", own, COMMAND.format("--version")),
        ("ppl-dgm --help", own, COMMAND.format("--help")),
    ]
    fits = [("fit, ppl_dgm", own, OURS)]
    fits += [("fit, NumPyro", jax_python, NUMPYRO)] if jax_python else []
    return {
        "import pyro": [("import pyro", own, "import pyro"), *imports],
        "fit, Pyro": [("fit, Pyro", own, PYRO), *fits],
    }


def measured(runs: list[tuple[str, str, str]], rounds: int) -> list[list[str]]:
    """Rows of seconds and ratios to the first contender."""
    found = [[seconds(python, code) for _, python, code in runs] for _ in range(rounds)]
    rows = []
    for place, (name, _, _) in enumerate(runs):
        times = [each[place] for each in found]
        ratio = statistics.median(each[place] / each[0] for each in found)
        rows.append([name, f"{statistics.median(times):.2f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jax-python", help="an interpreter with NumPyro")
    args = parser.parse_args()
    tables = [
        markdown(["", "processor s", f"ratio to {first}"], measured(runs, args.rounds))
        for first, runs in contenders(args.jax_python).items()
    ]
    note = "A fit is 200 steps on eight schools in a new process, imports and compiling included."
    page = ["# The start", note, *tables, provenance(f"0, {args.rounds} rounds")]
    PAGE.write_text("\n\n".join(page) + "\n")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
