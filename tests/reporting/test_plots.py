"""Pictures: what they show is where it should be."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm import Program
from ppl_dgm.reporting.plots import (
    ForestRow,
    plot_bounds,
    plot_clusters,
    plot_codes,
    plot_curves,
    plot_forest,
    plot_images,
    plot_latent_grid,
    plot_weights,
)
from ppl_dgm.reporting.plots.curves import averaged
from ppl_dgm.reporting.plots.images import tile
from ppl_dgm.reporting.plots.latents import quantile_grid
from ppl_dgm.sampling.decoding import latent_draws
from ppl_dgm.tasks import decode


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_forest_bars_span_95_percent():
    ax = plot_forest(
        [ForestRow("a", 2.0, 0.5, 1.0, "lower"), ForestRow("none", math.nan, 1.0)], "nats"
    )
    spans = sorted(tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2)
    assert spans == [pytest.approx((2 - 1.96, 2 + 1.96)), pytest.approx((2 - 0.98, 2 + 0.98))]
    assert ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "none"]


def test_curves_are_averaged_over_windows():
    step, value = torch.arange(10_000), torch.arange(10_000.0)
    x, y = averaged(step, value)
    assert len(x) <= 200
    assert np.allclose(x, y)
    ax = plot_curves(
        {"a": {"step": step, "objective": value, "valid_step": step[:3], "valid": value[:3]}}
    )
    assert len(ax.lines) == 2
    assert ax.get_ylabel() == "objective (nats per datum)"


@pytest.mark.parametrize("steps", [1, 160, 161, 250])
def test_windows_are_of_one_size_so_that_noise_does_not_change_along_a_curve(steps):
    x, _ = averaged(torch.arange(steps), torch.zeros(steps))
    assert len(set(np.diff(x)[:-1])) <= 1
    assert len(x) <= 160


def test_curves_drawn_on_given_axes():
    ax = plt.figure().add_subplot()
    assert plot_curves({"a": {"step": torch.arange(3), "objective": torch.zeros(3)}}, ax) is ax


def test_images_keep_their_place_in_the_grid():
    images = torch.arange(6.0).reshape(6, 1).expand(6, 4)
    grid = tile(images, (2, 2), num_columns=3, num_rows=2)
    assert grid.shape == (5, 8)
    assert grid[0, 3] == 1.0
    assert grid[3, 0] == 3.0
    assert np.isnan(grid[2]).all()


def test_colour_images_have_channels_last():
    image = torch.rand(1, 3, 2, 4)
    grid = tile(image, (3, 2, 4), 1, 1)
    assert np.allclose(grid[1, 2], image[0, :, 1, 2].numpy())


@pytest.mark.parametrize("image_shape", [(3, 3), (2, 2, 1)])
def test_images_of_another_shape_are_refused(image_shape):
    with pytest.raises(ValueError, match="are not of image_shape"):
        plot_images({"data": torch.zeros(2, 4)}, image_shape)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to show"):
        plot_images({}, (2, 2))


def test_weights_show_the_share_above():
    log_w = torch.log(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    ax = plot_weights(log_w)
    x, y = ax.lines[0].get_data()
    assert np.allclose(x, np.array([6, 3, 2, 1]) / 3.0)
    assert np.allclose(y, [0.25, 0.5, 0.75, 1.0])


def test_fitted_tail_follows_a_pareto_distribution():
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ax = plot_weights(-0.5 * u.log())  # w = u^(-1/2): share above w is w^-2
    dashed = next(line for line in ax.lines if line.get_label() == "fitted Pareto tail")
    x, y = dashed.get_data()
    assert np.allclose(np.log(y[:60]), -2 * np.log(x[:60] * 2.0), atol=0.3)  # the mean of w is 2
    assert "Pareto k = 0.5" in ax.get_title("left")


@pytest.mark.parametrize("log_weights", [torch.zeros(3, 2), torch.full((5,), -math.inf)])
def test_weights_of_one_datum_are_expected(log_weights):
    with pytest.raises(ValueError, match="expected the log weights of one datum"):
        plot_weights(log_weights)


# ---- latents -------------------------------------------------------------------------------------


def linear(dims: int) -> Program:
    """x = z, padded to four pixels."""

    def model(x=None):
        with pyro.plate("data", 1 if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dims), 2.0).to_event(1))
            pixels = torch.cat([z[..., :2], torch.zeros_like(z[..., :2])], -1)
            pyro.sample("x", dist.Normal(pixels, 1.0).to_event(1), obs=x)

    def guide(x=None):
        with pyro.plate("data", len(x)):
            loc = torch.cat([x[..., :2], torch.zeros(len(x), dims - 2)], -1)
            pyro.sample("z", dist.Normal(loc, 1e-3).to_event(1))

    return Program(model, guide)


@pytest.mark.parametrize("dims", [2, 3])
def test_latent_grid_has_the_prior_s_quantiles(dims):
    grid = plot_latent_grid(linear(dims), (2, 2), size=3).images[0].get_array()
    image = lambda row, column: grid[3 * row : 3 * row + 2, 3 * column : 3 * column + 2]  # noqa: E731
    across, up = image(1, 2)[0] - image(1, 0)[0], image(0, 1)[0] - image(2, 1)[0]
    assert across[0] == pytest.approx(up[1], rel=0.1)
    assert across[0] > 0
    assert abs(across[1]) < 1e-3
    assert abs(up[0]) < 1e-3
    pixels = decode(linear(dims), torch.eye(dims))  # the range of grey is that of the quantiles
    assert torch.equal(pixels[:2, :2], torch.eye(2))
    draws = latent_draws(linear(2), 4000)["z"].flatten(1)
    edges = quantile_grid(draws.double(), 3, (0, 1))[:, 0].unique()
    assert edges[0] == pytest.approx(-1.96 * 2, abs=0.3)


def test_codes_are_where_the_guide_says_in_the_colours_of_labels():
    x = torch.tensor([[1.0, 2, 0, 0], [3, 4, 0, 0], [5, 6, 0, 0]])
    ax = plot_codes(linear(2), x, labels=torch.tensor([1, 0, 1]))
    zero, one = (points.get_offsets() for points in ax.collections)
    assert np.allclose(zero, x[1:2, :2], atol=0.01)
    assert np.allclose(one, x[[0, 2], :2], atol=0.01)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["label 0", "label 1"]
    with pytest.raises(ValueError, match="one label for each of 3"):
        plot_codes(linear(2), x, labels=torch.tensor([1, 0]))


def test_clusters_of_many_dimensions_keep_the_largest_distances():
    x = torch.zeros(4, 5)
    x[:, 3], x[:, 1] = torch.tensor([0.0, 0, 10, 10]), torch.tensor([0.0, 1, 0, 1])
    ax = plot_clusters(x, torch.tensor([0, 0, 1, 1]), torch.tensor([7, 8, 8, 8]))
    points = np.concatenate([part.get_offsets() for part in ax.collections])
    assert np.allclose(np.linalg.norm(points[0] - points[3]), 101**0.5)
    assert ax.get_title("left") == "2 clusters, purity 0.75"


def test_bounds_over_particles():
    ax = plot_bounds(torch.tensor([1, 10]), torch.tensor([-2.0, -1.0]), torch.tensor([0.5, 0.1]))
    (bars,) = (part for part in ax.collections if len(part.get_segments()) == 2)
    assert np.allclose(bars.get_segments()[0][:, 1], [-2 - 0.98, -2 + 0.98], atol=1e-3)
