"""One dictionary of tiny programs of every family, with data and their evidence.

The account of the evidence is independent.

A new family adds one line to `CASES`; every generic test then runs over it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions.transforms import affine_coupling, householder
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Categorical,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
)

from ppl_dgm import Program
from ppl_dgm.conditionals.guides import (
    AmortisedGuide,
    BernoulliPosterior,
    DiagonalNormal,
    FlowPosterior,
    FullRankNormal,
)
from ppl_dgm.families import (
    FFJORD,
    FVSBN,
    IAF,
    MADE,
    MAF,
    NADE,
    NICE,
    NSF,
    PPCA,
    VAE,
    VQVAE,
    ConditionalVAE,
    Dequantised,
    Flow,
    FlowPlusPlus,
    GatedPixelCNN,
    Generator,
    Glow,
    HierarchicalVAE,
    IndependentBernoulli,
    Mixture,
    MultiscalePixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    PixelSNAIL,
    PixelTransformer,
    PlanarFlow,
    RealNVP,
    RecurrentNet,
    SemiSupervisedVAE,
    VariationalNoise,
    WaveNet,
    likelihoods,
    priors,
)
from ppl_dgm.families.bayesnet import BayesNet
from ppl_dgm.nn import MLP


@dataclass(frozen=True)
class Case:
    """A family's tiny instance.

    `make()` builds the program and `data()` its arguments, the same on each call; `truth(program,
    *data)` is the log evidence of each datum `[data]` in nats, found without the program. `given`
    are arguments for one datum that draws need, `[1]` each.
    """

    make: Callable[[], Program]
    data: Callable[[], tuple]
    truth: Callable[..., Tensor]
    given: dict[str, Tensor] = field(default_factory=dict)


def generator() -> torch.Generator:
    """Randomness of the data: the same on each call."""
    return torch.Generator().manual_seed(7)


def binary(num_data: int = 6, num_dims: int = 4) -> Callable[[], tuple]:
    """Random binary data `[num_data, num_dims]`."""
    return lambda: ((torch.rand(num_data, num_dims, generator=generator()) < 0.6).float(),)


def real(num_data: int = 6, num_dims: int = 3) -> Callable[[], tuple]:
    """Random normal data `[num_data, num_dims]`."""
    return lambda: (torch.randn(num_data, num_dims, generator=generator()),)


def unit(num_data: int = 6, num_dims: int = 3) -> Callable[[], tuple]:
    """Random data `[num_data, num_dims]` in [0, 1]."""
    return lambda: (torch.rand(num_data, num_dims, generator=generator()),)


def levels(num_levels: int, num_data: int = 6, num_dims: int = 3) -> Callable[[], tuple]:
    """Random integer data `[num_data, num_dims]` in 0, ..., num_levels - 1, as real numbers."""

    def data() -> tuple:
        x = torch.randint(num_levels, (num_data, num_dims), generator=generator()).float()
        x[0, 0] = num_levels - 1  # the highest level occurs
        return (x,)

    return data


def all_vectors(num_levels: int, num_dims: int) -> Tensor:
    """Every vector of levels, `[num_levels ** num_dims, num_dims]`."""
    return torch.tensor(
        list(product(range(num_levels), repeat=num_dims)), dtype=torch.get_default_dtype()
    )


def seeded(make: Callable[[], Program]) -> Callable[[], Program]:
    """The constructor with its parameters drawn from a fixed seed."""

    def built() -> Program:
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            program = make()
            with torch.no_grad():
                for parameter in program.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return program

    return built


# ---- evidence, found without the program ---------------------------------------------------------


def independent_bernoulli(program: Any, x: Tensor) -> Tensor:
    probs = program.probs
    return (probs.log() * x + (1 - probs).log() * (1 - x)).sum(-1)


def mixture(component: Callable[[Any, int], Any]) -> Callable[[Any, Tensor], Tensor]:
    """log sum_k pi_k p_k(x), one component after the other."""

    def truth(program: Any, x: Tensor) -> Tensor:
        parts = program.parts
        weights = parts.logits.softmax(-1)
        densities = [component(parts.components, k).log_prob(x).exp() for k in range(len(weights))]
        densities = [density.prod(-1) if density.dim() == 2 else density for density in densities]
        return sum(w * p for w, p in zip(weights, densities, strict=True)).log()

    return truth


def dense_normal(components: Any, k: int) -> MultivariateNormal:
    copy = 0 if components.covariance == "tied" else k
    factor = components.lower[copy].tril(-1) + components.log_scales[copy].exp().diag()
    return MultivariateNormal(components.locs[k], covariance_matrix=factor @ factor.T)


def ppca(program: Any, x: Tensor) -> Tensor:
    model = program.model.fn
    identity = torch.eye(len(model.loc), dtype=x.dtype, device=x.device)
    covariance = model.weight @ model.weight.T + (2 * model.log_scale).exp() * identity
    return MultivariateNormal(model.loc, covariance).log_prob(x)


def vae_by_quadrature(program: Any, x: Tensor) -> Tensor:
    """log of the integral over one or two latents on a fine grid."""
    model = program.model.fn
    half, size = (25, 5001) if model.prior.num_latents == 1 else (9, 481)
    axis = torch.linspace(-half, half, size, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[axis] * model.prior.num_latents).reshape(
        -1, 1, model.prior.num_latents
    )
    log_likelihood = (
        model.likelihood(model.decoder(z).reshape(len(z), 1, x.shape[-1], -1)).log_prob(x).sum(-1)
    )
    cell = model.prior.num_latents * (axis[1] - axis[0]).log()
    return (model.prior().log_prob(z) + log_likelihood + cell).logsumexp(0)


def grid(half: float, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points `[size, 1, 1]` and the log of their distance."""
    axis = torch.linspace(-half, half, size, dtype=like.dtype, device=like.device)
    return axis.reshape(-1, 1, 1), (axis[1] - axis[0]).log()


def hierarchical_by_quadrature(program: Any, x: Tensor) -> Tensor:
    """log of the double integral over one latent in each of two layers."""
    model = program.model.fn
    z, log_cell = grid(9, 241, x)
    above, below = (
        z.unsqueeze(0),
        z.unsqueeze(1),
    )  # z2 along the second dimension, z1 along the first
    log_joint = Normal(torch.zeros_like(above), 1.0).log_prob(above) + model.layers[0](
        above
    ).log_prob(below).unsqueeze(-1)
    log_likelihood = model.bottom.distribution(z).log_prob(x)
    return (log_joint.logsumexp(1).squeeze(-1) + log_likelihood + 2 * log_cell).logsumexp(0)


def missing_by_quadrature(program: Any, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Pixels that are not observed left out of the product."""
    model = program.model.fn
    z, log_cell = grid(9, 4001, x)
    keep = torch.ones_like(x) if observed is None else observed.to(x.dtype)
    log_pixels = model.likelihood(model.decoder(z).reshape(len(z), 1, x.shape[-1], -1)).log_prob(x)
    log_prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).squeeze(-1)
    return ((log_pixels * keep).sum(-1) + log_prior + log_cell).logsumexp(0)


def conditional_by_quadrature(program: Any, x: Tensor, y: Tensor) -> Tensor:
    """One datum's label after the other."""
    decoding = program.model.fn.decoding
    z, log_cell = grid(9, 2001, x)
    log_prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).squeeze(-1)
    one_hot = torch.nn.functional.one_hot(y.long(), program.model.fn.num_classes).to(x)
    pairs = torch.cat([z.expand(-1, len(x), 1), one_hot.expand(len(z), -1, -1)], -1)
    return (decoding.distribution(pairs).log_prob(x) + log_prior + log_cell).logsumexp(0)


def semi_supervised_by_quadrature(program: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
    """The label's share, or the sum over all labels where there is none."""
    num_classes = program.model.fn.num_classes
    each = torch.stack(
        [
            conditional_by_quadrature(program, x, torch.full_like(x[:, 0], c))
            for c in range(num_classes)
        ]
    )
    each = each - torch.tensor(float(num_classes)).log()
    if y is None:
        return each.logsumexp(0)
    return torch.where(
        y >= 0, each.gather(0, y.clamp_min(0).unsqueeze(0)).squeeze(0), each.logsumexp(0)
    )


def belief_net_by_enumeration(program: Any, x: Tensor) -> Tensor:
    """Sum over all binary latents."""
    model = program.model.fn
    z = all_vectors(2, model.prior.num_latents).to(x).unsqueeze(1)
    log_prior = Bernoulli(logits=model.prior.logits).log_prob(z).sum(-1)
    return (log_prior + Bernoulli(logits=model.decoder(z)).log_prob(x).sum(-1)).logsumexp(0)


def codes_by_enumeration(program: Any, x: Tensor) -> Tensor:
    """Sum over all codes, the prior's conditionals one after the other."""
    model = program.model.fn
    codes = all_vectors(3, 2).to(x)
    logits = [model.prior.net(model.prior.likelihood.inputs(codes))[:, m] for m in range(2)]
    log_prior = sum(Categorical(logits=row).log_prob(codes[:, m]) for m, row in enumerate(logits))
    vectors = model.codebook.vectors[codes.long()].unsqueeze(1)
    return (
        log_prior.unsqueeze(1) + model.likelihood(model.decoder(vectors)).log_prob(x).sum(-1)
    ).logsumexp(0)


def with_labels(data: Callable[[], tuple], labels: list[int]) -> Callable[[], tuple]:
    """Data with integer labels."""
    return lambda: (*data(), torch.tensor(labels))


def with_contexts(data: Callable[[], tuple], size: int) -> Callable[[], tuple]:
    """Data with a vector of real numbers for each."""

    def given() -> tuple:
        (x,) = data()
        return x, torch.rand(len(x), size, generator=generator())

    return given


def with_holes(data: Callable[[], tuple]) -> Callable[[], tuple]:
    """Data with a mask that leaves some entries out, and all of one datum."""

    def holed() -> tuple:
        (x,) = data()
        observed = torch.rand(x.shape, generator=generator()) < 0.6
        observed[0] = False
        return x, observed

    return holed


def made_by_conditionals(program: Any, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Conditionals one dimension, or group, at a time, the net's other inputs blanked out."""
    model, earlier = program.model.fn, torch.zeros_like(x)
    total, inputs = torch.zeros_like(x[:, 0]), model.likelihood.inputs
    for at in model.order or range(x.shape[1]):
        params = model.net(inputs(earlier), model.context(y))[:, at]
        conditional = model.likelihood(params.unsqueeze(-2))
        log_prob = conditional.log_prob(x[:, at].unsqueeze(-1))
        total = total + log_prob.reshape(len(x), -1).sum(-1)
        earlier[:, at] = x[:, at]
    return total


def bayes_net(program: Any, x: Tensor) -> Tensor:
    """Products of table entries, one variable after the other."""
    a, b, c = x.long().unbind(-1)
    nodes = program.nodes
    log_probs = [nodes[name].logits.log_softmax(-1) for name in "abc"]
    return log_probs[0][a] + log_probs[1][a, b] + log_probs[2][a, b, c]


def flow(program: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Density of the noise and Jacobian of the map to it, by autodiff, datum by datum."""
    found = []
    for i in range(len(x)):
        row = None if context is None else context[i : i + 1]

        def noise(value: Tensor, given: Tensor | None = row) -> Tensor:
            return program.latents(value.unsqueeze(0), given).squeeze(0)

        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(noise, x[i]))[1]
        found.append(Normal(torch.zeros_like(x[i]), 1.0).log_prob(noise(x[i])).sum() + log_det)
    return torch.stack(found)


def bounded_flow(num_levels: int) -> Flow:
    """A flow of one dimension with no mass beyond the levels."""
    inside = [SigmoidTransform(), AffineTransform(0.0, num_levels)]
    noise = pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1)
    return Flow(noise, [*MAF(1, 1, [5]).parts.transforms(), *inside])


def mass_of_cells(program: Any, x: Tensor) -> Tensor:
    """The integral of a flow's density over cells of one dimension, by Gauss and Legendre."""
    nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(64))
    places = (nodes / 2 + 0.5).to(x).unsqueeze(-1)
    scores = program.flow.distribution().log_prob(x.unsqueeze(1) + places)
    return (scores + (weights / 2).to(x).log()).logsumexp(-1)


def flow_prior() -> priors.FlowPrior:
    """Two coupling layers of two latents."""
    return priors.FlowPrior(2, [affine_coupling(2, [4]), householder(2), affine_coupling(2, [4])])


def vamp_vae() -> VAE:
    """A VAE whose prior is its guide at three pseudo-data."""
    guide = AmortisedGuide(torch.nn.Linear(3, 2), DiagonalNormal(1))
    prior = priors.VampPrior(guide, levels(5, num_data=3)()[0])
    return VAE(3, 1, [5], likelihoods.DiscretisedLogistic(5, 2), prior=prior, guide=guide)


CASES: dict[str, Case] = {
    "independent bernoulli": Case(
        seeded(lambda: IndependentBernoulli(4)), binary(), independent_bernoulli
    ),
    "bayes net": Case(
        seeded(
            lambda: BayesNet.from_edges(
                {"a": 2, "b": 2, "c": 2}, [("a", "b"), ("a", "c"), ("b", "c")]
            )
        ),
        binary(num_dims=3),
        bayes_net,
    ),
    "bernoulli mixture": Case(
        seeded(lambda: Mixture(4, 3, "bernoulli")),
        binary(),
        mixture(lambda c, k: Bernoulli(logits=c.logits[k])),
    ),
    "diagonal mixture": Case(
        seeded(lambda: Mixture(3, 2, "diagonal")),
        real(),
        mixture(lambda c, k: Normal(c.locs[k], c.log_scales[k].exp())),
    ),
    "full mixture": Case(seeded(lambda: Mixture(3, 2, "full")), real(), mixture(dense_normal)),
    "tied mixture": Case(seeded(lambda: Mixture(3, 2, "tied")), real(), mixture(dense_normal)),
    "ppca": Case(seeded(lambda: PPCA(3, 2)), real(), ppca),
    "bernoulli vae": Case(seeded(lambda: VAE(4, 1, [5])), binary(), vae_by_quadrature),
    "gaussian vae": Case(seeded(lambda: VAE(3, 1, [5], "gaussian")), real(), vae_by_quadrature),
    "full-rank categorical vae": Case(
        seeded(lambda: VAE(3, 2, [5], likelihoods.Categorical(3), guide=FullRankNormal(2))),
        levels(3),
        vae_by_quadrature,
    ),
    "generator with noise": Case(
        seeded(lambda: Generator(MLP(1, [5], 3), 1, 3, noise=0.5)), real(), vae_by_quadrature
    ),
    "iaf mixture-prior vae": Case(
        seeded(
            lambda: VAE(
                4, 2, [5], prior=priors.GaussianMixturePrior(2, 3), guide=FlowPosterior(2, "iaf")
            )
        ),
        binary(),
        vae_by_quadrature,
    ),
    "spline flow-prior vae": Case(
        seeded(lambda: VAE(4, 2, [5], prior=flow_prior(), guide=FlowPosterior(2, "spline"))),
        binary(),
        vae_by_quadrature,
    ),
    "planar continuous-bernoulli vae": Case(
        seeded(
            lambda: VAE(
                3, 2, [5], likelihoods.ContinuousBernoulli(), guide=FlowPosterior(2, "planar")
            )
        ),
        unit(),
        vae_by_quadrature,
    ),
    "vamp discretised-logistic vae": Case(seeded(vamp_vae), levels(5), vae_by_quadrature),
    "two-layer vae": Case(
        seeded(lambda: HierarchicalVAE(4, (1, 1), [[5], [3]])), binary(), hierarchical_by_quadrature
    ),
    "top-down two-layer vae": Case(
        seeded(lambda: HierarchicalVAE(3, (1, 1), [[5], [3]], "gaussian", top_down=True)),
        real(),
        hierarchical_by_quadrature,
    ),
    "vae of data with holes": Case(
        seeded(lambda: VAE(4, 1, [5])), with_holes(binary()), missing_by_quadrature
    ),
    "conditional vae": Case(
        seeded(lambda: ConditionalVAE(3, 1, 3, [5])),
        with_labels(binary(num_dims=3), [0, 1, 2, 2, 1, 0]),
        conditional_by_quadrature,
        {"y": torch.tensor([1])},
    ),
    "semi-supervised vae": Case(
        seeded(lambda: SemiSupervisedVAE(3, 1, 3, [5])),
        with_labels(binary(num_dims=3), [0, -1, 2, -1, 1, -1]),
        semi_supervised_by_quadrature,
    ),
    "sigmoid belief net": Case(
        seeded(lambda: VAE(4, 3, [], prior=priors.BernoulliPrior(3), guide=BernoulliPosterior(3))),
        binary(),
        belief_net_by_enumeration,
    ),
    "vq-vae": Case(
        seeded(lambda: VQVAE(4, 2, 3, 2, [5], prior_hidden=[4])), binary(), codes_by_enumeration
    ),
    "vq-vae with a learned codebook": Case(
        seeded(lambda: VQVAE(3, 2, 3, 2, [5], "gaussian", prior_hidden=[4], decay=None)),
        real(),
        codes_by_enumeration,
    ),
    "made": Case(seeded(lambda: MADE(4, [8], order=[2, 0, 3, 1])), binary(), made_by_conditionals),
    "planar flow": Case(seeded(lambda: PlanarFlow(3, length=3)), real(), flow),
    "nice": Case(seeded(lambda: NICE(3, 2, [5])), real(), flow),
    "realnvp": Case(seeded(lambda: RealNVP(3, 2, [5])), real(), flow),
    "maf": Case(seeded(lambda: MAF(3, 2, [5])), real(), flow),
    "iaf": Case(seeded(lambda: IAF(3, 2, [5])), real(), flow),
    "realnvp of images": Case(seeded(lambda: RealNVP((1, 4, 2), 2, [4])), real(6, 8), flow),
    "glow": Case(seeded(lambda: Glow((1, 2, 2), 2, [4], levels=1)), real(6, 4), flow),
    "flow++": Case(seeded(lambda: FlowPlusPlus((1, 4, 2), 1, 4, 2, 1)), real(6, 8), flow),
    "ffjord": Case(seeded(lambda: FFJORD(3, 1, [5], 2)), real(), flow),
    "dequantised flow": Case(
        seeded(lambda: Dequantised(bounded_flow(3), 3, VariationalNoise(1, 3, 1, [5]))),
        levels(3, num_dims=1),
        mass_of_cells,
    ),
    "neural spline flow": Case(seeded(lambda: NSF(3, 2, [5], num_bins=4)), real(), flow),
    "conditional flow": Case(
        seeded(lambda: RealNVP(3, 2, [5], num_context=2)),
        lambda: (*real()(), torch.randn(6, 2, generator=generator())),
        flow,
        {"context": torch.zeros(1, 2)},
    ),
    "categorical made": Case(
        seeded(lambda: MADE(3, [8, 8], likelihoods.Categorical(3))), levels(3), made_by_conditionals
    ),
    "fvsbn": Case(seeded(lambda: FVSBN(4)), binary(), made_by_conditionals),
    "nade": Case(seeded(lambda: NADE(4, 5, order=[2, [0, 3], 1])), binary(), made_by_conditionals),
    "recurrent net": Case(seeded(lambda: RecurrentNet(4, 4)), binary(), made_by_conditionals),
    "wavenet": Case(
        seeded(lambda: WaveNet(4, 4, order=[2, 0, 3, 1])), binary(), made_by_conditionals
    ),
    "pixelcnn": Case(seeded(lambda: PixelCNN((1, 2, 2), 4, 1)), binary(), made_by_conditionals),
    "gated pixelcnn": Case(
        seeded(lambda: GatedPixelCNN((1, 2, 2), 4)), binary(), made_by_conditionals
    ),
    "pixelcnn++": Case(
        seeded(
            lambda: PixelCNNPlusPlus(
                (1, 2, 2), 4, 2, 1, likelihoods.DiscretisedLogistic(2, 2), dropout=0.0
            )
        ),
        binary(),
        made_by_conditionals,
    ),
    "multiscale pixelcnn": Case(
        seeded(lambda: MultiscalePixelCNN((1, 1, 4), 4, 1)), binary(), made_by_conditionals
    ),
    "super-resolution": Case(
        seeded(lambda: PixelCNN((1, 2, 2), 4, 1, context=(1, 1, 2))),
        with_contexts(binary(), 2),
        made_by_conditionals,
        {"y": torch.tensor([[0.2, 0.7]])},
    ),
    "pixel transformer": Case(
        seeded(lambda: PixelTransformer((1, 2, 2), 4, 1, 2)), binary(), made_by_conditionals
    ),
    "pixelsnail": Case(
        seeded(lambda: PixelSNAIL((1, 2, 2), 4, 1, 1, 1)), binary(), made_by_conditionals
    ),
}
