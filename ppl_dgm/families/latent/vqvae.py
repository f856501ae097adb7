"""Vector-quantised VAE, with discrete codes.

It has a codebook, and an autoregressive prior that gives it a likelihood.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_dgm.checked import checked
from ppl_dgm.conditionals.likelihoods import Categorical, Likelihood, named_likelihood
from ppl_dgm.families.autoregressive.model import AutoregressiveModel
from ppl_dgm.families.latent.vae import ScaledInputs
from ppl_dgm.nn.masked import MADENet
from ppl_dgm.nn.mlp import MLP, Activation, hidden_sizes
from ppl_dgm.program import Program

__all__ = ["VQVAE"]


class VQVAE(Program):
    r"""Vector-quantised VAE with a MADE prior over codes.

    van den Oord, Vinyals and Kavukcuoglu (2017).

    Codes $k = (k_1, \dots, k_M) \sim \mathrm{MADE}$, $x \sim p(x \mid \mathrm{decoder}(c_{k_1},
    \dots, c_{k_M}))$ with c the codebook. In training mode the guide takes the vector nearest to
    each of the encoder's M outputs e, the gradient passes straight through to e, and the objective
    has the terms $-\beta \|e - \mathrm{sg}(c_k)\|^2$ and, unless the codebook follows the moving
    averages of e (their appendix A.1), $-\|\mathrm{sg}(e) - c_k\|^2$.

    In evaluation mode the guide is $q(k_m \mid x) \propto \exp(-\|e_m - c_{k_m}\|^2 / \tau)$, which
    covers all codes, so that importance sampling estimates log p(x) itself.

    Args:
        num_dims: number D of dimensions.
        num_codes: number M of codes for each datum.
        codebook_size: number K of vectors in the codebook.
        code_dim: size of each.
        hidden: sizes of the decoder's hidden layers, and reversed, of the encoder's.
        likelihood: a `Likelihood`, `"bernoulli"` or `"gaussian"`.
        prior_hidden: hidden layers of the MADE.
        commitment: beta.
        decay: of the moving averages; None learns the codebook by its gradient.
        temperature: tau.
        activation: makes the activation.

    Raises:
        ValueError: sizes below one, a codebook of fewer than two vectors, a decay or temperature
            out of range.

    Example:
        >>> vqvae = VQVAE(6, num_codes=2, codebook_size=4, code_dim=3, hidden=[8])
        >>> vqvae.encode(torch.ones(5, 6)).shape, vqvae.sample(2).shape
        (torch.Size([5, 2]), torch.Size([2, 6]))
    """

    vectors = True

    @checked
    def __init__(
        self,
        num_dims: int,
        num_codes: int,
        codebook_size: int,
        code_dim: int = 8,
        hidden: Sequence[int] = (200, 200),
        likelihood: str | Likelihood = "bernoulli",
        prior_hidden: Sequence[int] = (200,),
        commitment: float = 0.25,
        decay: float | None = 0.99,
        temperature: float = 0.1,
        activation: Activation = nn.ReLU,
    ) -> None:
        check_settings(codebook_size, commitment, decay, temperature)
        likelihood, levels = named_likelihood(likelihood), Categorical(codebook_size)
        prior = AutoregressiveModel(MADENet(num_codes, prior_hidden, codebook_size), levels)
        encoder = nn.Sequential(
            ScaledInputs(likelihood),
            MLP(num_dims, hidden_sizes(hidden)[::-1], num_codes * code_dim, activation),
            nn.Unflatten(-1, (num_codes, code_dim)),
        )
        decoder = nn.Sequential(
            nn.Flatten(-2),
            MLP(num_codes * code_dim, hidden, num_dims * likelihood.num_params, activation),
            nn.Unflatten(-1, (num_dims, likelihood.num_params)),
        )
        codebook = Codebook(codebook_size, code_dim, decay)
        model = CodeModel(prior, codebook, encoder, decoder, likelihood, commitment)
        super().__init__(model, CodeGuide(codebook, encoder, levels, temperature))

    @checked
    def encode(self, x: Tensor) -> Tensor:
        """Find the nearest codes of data `[N, D]`: `[N, M]`.

        They are whole numbers below the codebook's size.
        """
        guide: Any = self.guide.fn
        return guide.distances(self.as_data(x)).argmin(-1)

    @checked
    @torch.no_grad()
    def start_from_kmeans(self, x: Tensor, seed: int = 0) -> "VQVAE":
        """Start the codebook at k-means centres.

        The centres are of the encoder's outputs for data `[N, D]`, so that no vector of the
        codebook is out of reach. Returns the program itself.

        Raises:
            ValueError: for fewer outputs (N times the number of codes) than vectors.
        """
        guide: Any = self.guide.fn
        codebook: Codebook = self.model.fn.codebook  # type: ignore[attr-defined,assignment]
        outputs = guide.encoder(self.as_data(x)).flatten(0, -2)
        if len(outputs) < len(codebook.vectors):
            raise ValueError(
                f"there are {len(outputs)} codes for a codebook of {len(codebook.vectors)}; give "
                "it more data"
            )
        from sklearn.cluster import KMeans  # noqa: PLC0415 - seconds of import, for few users

        size = len(codebook.vectors)
        clusters = KMeans(size, n_init=1, random_state=seed)  # type: ignore[arg-type]
        clusters.fit(outputs.double().cpu().numpy())
        codebook.restart(torch.as_tensor(clusters.cluster_centers_).to(outputs))
        return self


def check_settings(
    codebook_size: int, commitment: float, decay: float | None, temperature: float
) -> None:
    """Refuse settings out of range."""
    if codebook_size < 2:
        raise ValueError(
            f"codebook_size is {codebook_size}; expected at least 2 vectors to choose from"
        )
    if commitment < 0 or not temperature > 0:
        raise ValueError(
            f"expected commitment >= 0 and temperature > 0, got {commitment} and {temperature}"
        )
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; expected at least 0 and less than 1, or None")


class Codebook(nn.Module):
    """Codebook of K learned vectors.

    They are learned by gradient, or as moving averages of what was assigned to them.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, code_dim: int, decay: float | None) -> None:
        super().__init__()
        self.decay = decay
        start = torch.randn(size, code_dim)
        if decay is None:
            self.vectors = nn.Parameter(start)
        else:
            self.register_buffer("vectors", start)
            self.register_buffer("counts", torch.ones(size))
            self.register_buffer("sums", start.clone())

    def forward(self, codes: Tensor) -> Tensor:
        """Vectors `[..., M, code_dim]` of codes `[..., M]`."""
        return self.vectors[codes.long()]

    @torch.no_grad()
    def restart(self, vectors: Tensor) -> None:
        """Begin again at the given vectors `[K, code_dim]`."""
        self.vectors.copy_(vectors)
        if self.decay is not None:
            self.counts.fill_(1.0)
            self.sums.copy_(vectors)

    @torch.no_grad()
    def follow(self, codes: Tensor, outputs: Tensor) -> None:
        """Move the vectors towards assigned encoder outputs.

        Outputs `[..., M, code_dim]` are assigned to codes `[..., M]`.
        """
        decay = self.decay or 0.0
        one_hot = (codes.unsqueeze(-1) == torch.arange(len(self.vectors), device=codes.device)).to(
            outputs
        )
        one_hot, outputs = one_hot.flatten(0, -2), outputs.expand(*codes.shape, -1).flatten(0, -2)
        self.counts.mul_(decay).add_(one_hot.sum(0), alpha=1 - decay)
        self.sums.mul_(decay).add_(one_hot.T @ outputs, alpha=1 - decay)
        self.vectors.copy_(self.sums / self.counts.clamp_min(1e-5).unsqueeze(-1))


class CodeModel(nn.Module):
    """codes ~ prior, x ~ likelihood(decoder(codebook[codes]))."""

    def __init__(
        self,
        prior: AutoregressiveModel,
        codebook: Codebook,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        commitment: float,
    ) -> None:
        super().__init__()
        self.prior, self.codebook, self.decoder, self.likelihood = (
            prior,
            codebook,
            decoder,
            likelihood,
        )
        self.commitment = commitment
        self._encoder = (encoder,)  # in a tuple: its parameters are the guide's

    def forward(self, x: Tensor | None = None) -> Tensor:
        """Score data `[data, D]`, or draw one datum."""
        with pyro.plate("data", 1 if x is None else len(x), dim=-1):
            codes = pyro.sample("codes", self.prior.distribution())
            vectors = self.codebook(codes)
            if self.training and x is not None:
                vectors = self._straight_through(self._encoder[0](x), codes, vectors)
            return pyro.sample("x", self.likelihood(self.decoder(vectors)).to_event(1), obs=x)

    def _straight_through(self, outputs: Tensor, codes: Tensor, vectors: Tensor) -> Tensor:
        """Return codebook vectors with straight-through gradients.

        The gradients go to the encoder's outputs.
        """
        pyro.factor("commitment", -self.commitment * distance(outputs, vectors.detach()).sum(-1))
        if self.codebook.decay is None:
            pyro.factor("codebook", -distance(outputs.detach(), vectors).sum(-1))
        else:
            self.codebook.follow(codes, outputs)
        return outputs + (vectors - outputs).detach()


class CodeGuide(nn.Module):
    """Codes of the vectors nearest to the encoder's outputs."""

    def __init__(
        self, codebook: Codebook, encoder: nn.Module, levels: Categorical, temperature: float
    ) -> None:
        super().__init__()
        self.encoder, self.levels, self.temperature = encoder, levels, temperature
        self._codebook = (codebook,)  # in a tuple: its parameters are the model's

    def distances(self, x: Tensor) -> Tensor:
        """Compute squared distances of outputs to codebook vectors.

        They are `[..., M, K]`, of each output to each vector.
        """
        return distance(self.encoder(x).unsqueeze(-2), self._codebook[0].vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Draw codes `[data, M]`."""
        logits = -self.distances(x) / self.temperature
        if self.training:
            logits = torch.where(logits == logits.max(-1, keepdim=True).values, 0.0, -torch.inf)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("codes", self.levels(logits).to_event(1))


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distance along the last dimension."""
    return (first - second).square().sum(-1)
