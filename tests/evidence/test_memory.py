"""Evidence with very many particles stays within a bound of memory."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from ppl_dgm import families
from ppl_dgm.data import load_digits
from ppl_dgm.evidence import ImportanceSampling

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB

torch.set_num_threads(1)
data = load_digits(levels=2)
vae = families.VAE(64, 8, hidden=[64]).initialise(data.x)
ImportanceSampling(10)(vae, data.x)
start = peak()
result = ImportanceSampling(5000)(vae, data.x)
assert result.log_z.shape == (1797,)
print(peak() - start)
"""


@pytest.mark.slow
def test_five_thousand_particles_for_all_digits_in_less_than_a_gibibyte():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=600
    )
    assert float(ran.stdout) < 1.0
