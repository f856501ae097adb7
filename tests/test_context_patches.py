"""Changes to torch and Pyro are seen only by the thread that runs a program.

They are undone however the run ends.
"""

import threading
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.ops.special as special
import pytest
import torch
from pyro.poutine import scale_messenger
from torch import Tensor
from torch.distributions import Distribution, dirichlet

from ppl_dgm import Program
from ppl_dgm.context_patches import ContextPatches, Patch
from ppl_dgm.evidence import ImportanceSampling
from ppl_dgm.program.pyro_patches import forgiving_factors, unvalidated
from ppl_dgm.program.vmap_patches import mappable_functions

SINGULAR = -torch.eye(2)
MADE_BEFORE = dist.Exponential(1.0, validate_args=True)


def elsewhere(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread, or the error it raises."""
    results = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def attributes() -> list[Any]:
    """What is changed while programs run."""
    return [
        Distribution.__init__,
        Distribution._validate_sample,
        Distribution._validate_args,
        torch.linalg.cholesky,
        dirichlet._Dirichlet.apply,
        special._SafeLog.apply,
        scale_messenger.is_validation_enabled,
        pyro.poutine.is_validation_enabled(),
    ]


def assert_strict() -> None:
    """A thread that runs no program validates and refuses singular matrices."""
    assert isinstance(elsewhere(lambda: dist.Normal(0.0, -1.0)), ValueError)
    assert isinstance(elsewhere(lambda: MADE_BEFORE.log_prob(torch.tensor(-1.0))), ValueError)
    assert isinstance(elsewhere(lambda: torch.linalg.cholesky(SINGULAR)), torch.linalg.LinAlgError)
    assert elsewhere(
        lambda: type(special._SafeLog.apply(torch.ones((), requires_grad=True)).grad_fn).__name__
    ) == ("_SafeLogBackward")


def test_another_thread_sees_nothing_while_an_estimator_runs() -> None:
    seen = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(2)))
            if Distribution.__init__ is not plain:  # inside a run
                assert_strict()
                assert torch.linalg.cholesky(SINGULAR).isnan().all()
                dist.Normal(0.0, -1.0)
                seen.append(True)
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    plain, before = Distribution.__init__, attributes()
    ImportanceSampling(10, compile=False)(Program(model), torch.zeros(2))
    assert seen
    assert attributes() == before


@pytest.mark.parametrize("patches", [unvalidated, forgiving_factors, mappable_functions])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_patches_are_undone(patches: ContextPatches, error: type[BaseException] | None) -> None:
    before = attributes()
    try:
        with patches(), patches():
            assert attributes() != before
            assert_strict()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert attributes() == before
    assert isinstance(elsewhere(lambda: dist.Normal(0.0, -1.0)), ValueError)


def test_two_threads_leave_in_any_order() -> None:
    class Owner:
        @staticmethod
        def value() -> str:
            return "original"

    patches, inside, leave = (
        ContextPatches(Patch(Owner, "value", lambda: "new")),
        *(threading.Event() for _ in range(2)),
    )

    def other() -> None:
        with patches():
            inside.set()
            leave.wait(10)
            assert Owner.value() == "new"

    thread = threading.Thread(target=other)
    with patches():
        thread.start()
        assert inside.wait(10)
    assert Owner.value() == "original"
    leave.set()
    thread.join()
    assert Owner.value() == "original"
    assert Owner.__dict__["value"].__func__ is Owner.value
    with patches():
        assert Owner.value() == "new"
