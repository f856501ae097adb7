"""Problems of the literature and of other libraries' tests.

Their answers were computed anew.
"""

import json
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.data.problems.problem import FLOAT, Problem, normal, tensor, uniform

__all__ = ["published", "sleep"]

LONG_RUNS = "importance sampling, millions of draws"


# ---- conjugate models of coins and lines ---------------------------------------------------------


def beta_binomial(x: Tensor) -> None:
    """Two successes of ten, uniform prior: log 1/11."""
    rate = pyro.sample("theta", dist.Uniform(tensor(0.0), tensor(1.0)))
    pyro.sample("x", dist.Binomial(10, rate), obs=x)


def beta_bernoulli(concentration: float) -> Callable:
    """Coin tosses with a symmetric beta prior."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("theta", dist.Beta(tensor(concentration), tensor(concentration)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(rate), obs=x)

    return model


def radiata(x: Tensor, covariate: Tensor) -> None:
    """Linear regression with a normal-gamma prior (Friel and Wyse 2012)."""
    tau = pyro.sample("tau", dist.Gamma(tensor(3.0), tensor(2 * 300.0**2)))
    alpha = pyro.sample("alpha", dist.Normal(tensor(3000.0), (0.06 * tau).rsqrt()))
    beta = pyro.sample("beta", dist.Normal(tensor(185.0), (6 * tau).rsqrt()))
    with pyro.plate("data", len(x)):
        pyro.sample(
            "x", dist.Normal(alpha + beta * (covariate - covariate.mean()), tau.rsqrt()), obs=x
        )


# ---- hierarchies and regressions -----------------------------------------------------------------


def hierarchy(mean_is_zero: bool) -> Callable:
    """Normal means, of mean zero (H0) or unknown mean (H1)."""

    def model(x: Tensor) -> None:
        mean = (
            tensor(0.0)
            if mean_is_zero
            else pyro.sample("mu", dist.Normal(tensor(0.0), tensor(1.0)))
        )
        variance = pyro.sample("tau2", dist.InverseGamma(tensor(1.0), tensor(1.0)))
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Normal(mean, variance.sqrt()))
            pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    return model


def sleep(with_effect: bool) -> Callable:
    """Paired t test, with (H1) or without (H0) an effect."""

    def model(x: Tensor) -> None:
        scale = pyro.sample("precision", dist.Gamma(tensor(1e-4), tensor(1e-4))).rsqrt()
        effect = (
            pyro.sample("delta", dist.Cauchy(tensor(0.0), tensor(0.5).sqrt()))
            if with_effect
            else tensor(0.0)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(effect * scale, scale), obs=x)

    return model


def eight_schools(x: Tensor, sigma: Tensor) -> None:
    """Eight schools in the centred form."""
    mu = pyro.sample("mu", dist.Normal(tensor(0.0), tensor(5.0)))
    tau = pyro.sample("tau", dist.HalfCauchy(tensor(5.0)))
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("x", dist.Normal(theta, sigma), obs=x)


def logistic_regression(x: Tensor, covariates: Tensor) -> None:
    """Logistic regression with an intercept and standard normal coefficients."""
    theta = pyro.sample("theta", normal(0.0, 1.0, covariates.shape[-1] + 1))
    logits = theta[..., 0] + (theta[..., 1:] * covariates).sum(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)


def galaxy(x: Tensor) -> None:
    """Mixture of two normals of equal variance (Chib 1995)."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2, dtype=FLOAT)))
    mu = pyro.sample("mu", normal(20.0, 10.0, 2))
    variance = pyro.sample("sigma2", dist.InverseGamma(tensor(3.0), tensor(20.0)))
    with pyro.plate("data", len(x)):
        parts = dist.Normal(mu, variance.sqrt()[..., None])
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def exchange_rates(x: Tensor) -> None:
    """Two-factor model of six exchange rates (Lopes and West 2004).

    It is identified up to a sign that no prior forbids.
    """
    diagonal = pyro.sample("diagonal", dist.HalfNormal(torch.ones(2, dtype=FLOAT)).to_event(1))
    below = pyro.sample("below", normal(0.0, 1.0, 9))
    variances = pyro.sample(
        "sigma2", dist.InverseGamma(torch.full((6,), 1.1, dtype=FLOAT), tensor(0.05)).to_event(1)
    )
    zero = torch.zeros_like(below[..., :1])
    first = torch.cat([diagonal[..., :1], below[..., :5]], -1)
    second = torch.cat([zero, diagonal[..., 1:], below[..., 5:]], -1)
    factors = torch.stack([first, second], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.LowRankMultivariateNormal(x.new_zeros(6), factors, variances), obs=x)


# ---- unnormalised densities: a uniform or normal reference times a factor
# --------------------------------------------


def normal_kernel(loc: tuple[float, float]) -> Callable:
    """Standard normal kernel over the plane: log 2 pi."""

    def model() -> None:
        reference = normal(0.0, 3.0, 2)
        x = pyro.sample("point", reference)
        pyro.factor("kernel", -0.5 * (x - tensor(loc)).square().sum(-1) - reference.log_prob(x))

    return model


def egg_box() -> None:
    """Eighteen narrow peaks in a box."""
    x = pyro.sample("point", uniform(0.0, 10 * math.pi, 2))
    pyro.factor("likelihood", (2 + (x / 2).cos().prod(-1)) ** 5)


def correlated_normal() -> None:
    """Three strongly correlated dimensions in a box."""
    x = pyro.sample("point", uniform(-10.0, 10.0, 3))
    covariance = torch.full((3, 3), 0.95, dtype=FLOAT) + 0.05 * torch.eye(3, dtype=FLOAT)
    target = dist.MultivariateNormal(torch.linspace(-1, 1, 3, dtype=FLOAT), covariance)
    pyro.factor("likelihood", target.log_prob(x))


def shells() -> None:
    """Two thin Gaussian shells in a box."""
    x = pyro.sample("point", uniform(-6.0, 6.0, 2))
    radii = torch.stack(
        [(x - tensor([centre, 0.0])).square().sum(-1).sqrt() for centre in (-3.5, 3.5)]
    )
    pyro.factor("likelihood", dist.Normal(tensor(2.0), tensor(0.1)).log_prob(radii).logsumexp(0))


def rosenbrock() -> None:
    """Five banana-shaped pairs in a box of ten dimensions."""
    x = pyro.sample("point", uniform(-10.0, 10.0, 10))
    even, odd = x[..., 0::2], x[..., 1::2]
    pyro.factor("likelihood", -(10 * (even.square() - odd).square() + (even - 1).square()).sum(-1))


def log_gamma() -> None:
    """Unnormalised log-gamma density in two dimensions."""
    reference = normal(0.0, 1.0, 2)
    x = pyro.sample("point", reference)
    pyro.factor("target", (5 * x - 10 * x.exp()).sum(-1) - reference.log_prob(x))


# ---- data ----------------------------------------------------------------------------------------

HIERARCHY_X = tensor(
    [
        *(
            1.193653322232857,
            1.9574533144792623,
            -0.7216175442484425,
            -1.873808331834139,
            -1.169282388035706,
        ),
        *(
            0.5196085261489647,
            -0.03610040541835946,
            0.42508814763773334,
            0.4111922107682586,
            -0.812369798961578,
        ),
        *(
            0.7296735663842985,
            3.4818672159827697,
            2.311263813519679,
            2.0002942243024204,
            -0.2764350699960085,
        ),
        *(
            1.0688236953477657,
            -0.9508359925638927,
            -1.896511006196506,
            2.560197366630067,
            0.23703060210084223,
        ),
    ]
)
SLEEP_X = tensor([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
SCHOOLS = (tensor([28.0, 8, -3, 7, -1, 1, 18, 12]), tensor([15.0, 10, 16, 11, 9, 11, 10, 18]))
TOSSES = tensor([1.0, 1, 1, 0, 1, 1, 1, 0, 1, 0])
FIFTY_FIFTY = torch.cat([torch.ones(50, dtype=FLOAT), torch.zeros(50, dtype=FLOAT)])


def of_few_numbers() -> list[Problem]:
    """Problems whose data are a few numbers."""
    return [
        Problem(
            "bs_betabinomial_tutorial",
            beta_binomial,
            (tensor(2.0),),
            -math.log(11),
            source="bridgesampling, tutorial",
        ),
        Problem(
            "bs_cmdstan_bernoulli",
            beta_bernoulli(1.0),
            (TOSSES,),
            -7.1853870155804165,
            source="bridgesampling, tests",
        ),
        Problem(
            "pymc_beta_bernoulli_1",
            beta_bernoulli(1.0),
            (FIFTY_FIFTY,),
            -71.39896216885869,
            source="PyMC, tests of SMC",
        ),
        Problem(
            "pymc_beta_bernoulli_20",
            beta_bernoulli(20.0),
            (FIFTY_FIFTY,),
            -69.94556319058591,
            source="PyMC, tests of SMC",
        ),
        Problem(
            "bs_hier_normal_H0",
            hierarchy(True),
            (HIERARCHY_X,),
            -37.534131260187024,
            known="quadrature",
            source="bridgesampling, tests",
        ),
        Problem(
            "bs_hier_normal_H1",
            hierarchy(False),
            (HIERARCHY_X,),
            -37.79830641018938,
            known="quadrature",
            source="bridgesampling, tests",
        ),
        Problem(
            "bs_sleep_jss_H0",
            sleep(False),
            (SLEEP_X,),
            -30.020640595384478,
            known="quadrature",
            source="Gronau, Singmann and Wagenmakers (2020)",
        ),
        Problem(
            "bs_sleep_jss_H1",
            sleep(True),
            (SLEEP_X,),
            -27.17226323141607,
            known="quadrature",
            source="Gronau, Singmann and Wagenmakers (2020)",
        ),
        Problem(
            "eight_schools_posteriordb",
            eight_schools,
            SCHOOLS,
            -31.311347352292785,
            known="quadrature",
            source="posteriordb; Rubin (1981)",
        ),
        Problem(
            "bs_std_normal_2d",
            normal_kernel((0.0, 0.0)),
            (),
            math.log(2 * math.pi),
            source="bridgesampling, tests",
        ),
        Problem(
            "bs_std_normal_2d_off_centre",
            normal_kernel((1.0, 2.0)),
            (),
            math.log(2 * math.pi),
            source="bridgesampling, tests",
        ),
        Problem(
            "dynesty_eggbox",
            egg_box,
            (),
            235.85594033225414,
            known="quadrature",
            source="dynesty, tests",
        ),
        Problem(
            "dynesty_gauss3d", correlated_normal, (), -8.987196820661973, source="dynesty, tests"
        ),
        Problem(
            "dynesty_shells_2",
            shells,
            (),
            -1.7456418720467646,
            known="quadrature",
            source="dynesty, demos",
        ),
        Problem(
            "pocomc_rosenbrock10_U",
            rosenbrock,
            (),
            -29.995787925620654,
            known="quadrature",
            source="pocoMC",
        ),
        Problem(
            "tfp_ais_loggamma",
            log_gamma,
            (),
            2 * -8.334871634622285,
            source="TensorFlow Probability, tests of AIS",
        ),
    ]


def with_files() -> list[Problem]:
    """Problems whose data are in a file."""
    found = json.loads(files("ppl_dgm.data.problems").joinpath("observations.json").read_text())
    data = {name: {k: tensor(v) for k, v in each.items()} for name, each in found.items()}
    pima: Any = {"known": LONG_RUNS, "source": "Friel and Wyse (2012); harmonic"}
    radiata_data, rates = data["radiata"], data["exchange_rates"]["Y"]
    y, covariates = data["pima"]["y"], data["pima"]["X"]
    return [
        Problem(
            "radiata_x_density",
            radiata,
            (radiata_data["y"], radiata_data["c"]),
            -310.1282855367477,
            source="Friel and Wyse (2012); harmonic",
        ),
        Problem(
            "pima_tau1.0_m1",
            logistic_regression,
            (y, covariates[:, :4]),
            -247.3036,
            0.0003,
            **pima,
        ),
        Problem("pima_tau1.0_m2", logistic_regression, (y, covariates), -247.5623, 0.0003, **pima),
        Problem(
            "galaxy_k2_eq",
            galaxy,
            (data["galaxy"]["y"],),
            -239.7605666959448,
            0.0004755931094279871,
            known=LONG_RUNS,
            source="Chib (1995); Neal (1999)",
        ),
        Problem(
            "bs_ier_k2",
            exchange_rates,
            (rates,),
            -903.2117,
            0.0005,
            known=LONG_RUNS,
            source="Lopes and West (2004); bridgesampling",
        ),
    ]


def published() -> list[Problem]:
    """All of them."""
    return of_few_numbers() + with_files()
