"""Data sets: rows, splits, digests, and units against closed forms and autodiff."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, constraints

from ppl_dgm.data import Dataset


@pytest.fixture
def grey():
    """Six rows of three values among four levels, with labels."""
    x = torch.tensor(
        [[0, 1, 2], [3, 2, 1], [0, 0, 0], [3, 3, 3], [1, 2, 3], [2, 2, 2]], dtype=torch.float32
    )
    return Dataset(x, support=4, labels=torch.arange(6), image_shape=(1, 1, 3), name="grey")


def test_arguments_are_handed_on_as_they_came():
    x, y = torch.zeros(3, 2), torch.ones(3)
    assert Dataset(x).args[0] is x
    assert Dataset(x).kwargs == {}
    assert Dataset((x, y)).args == (x, y)
    named = Dataset({"y": y, "x": x})
    assert named.args == ()
    assert list(named.kwargs) == ["y", "x"]
    assert named.x is x


def test_splits_partition_the_rows(grey):
    split = grey.split((0.5, 0.2, 0.3), seed=4)
    assert split.split_sizes == (3, 1, 2)
    labels = torch.cat([split.train.labels, split.valid.labels, split.test.labels])
    assert labels.sort().values.tolist() == list(range(6))
    torch.testing.assert_close(
        torch.cat([split.train.x, split.valid.x, split.test.x]), grey.x[labels]
    )
    assert split.train.support is split.support


def test_splits_repeat_by_seed_and_leave_the_global_generator_alone(grey):
    state = torch.get_rng_state()
    order = grey.split(seed=1).labels
    assert torch.equal(order, grey.split(seed=1).labels)
    assert not torch.equal(order, grey.split(seed=2).labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_rows", range(1, 12))
def test_split_sizes_always_add_up(num_rows):
    sizes = Dataset(torch.zeros(num_rows)).split((0.5, 0.5, 0.0)).split_sizes
    assert sum(sizes) == num_rows
    assert min(sizes) >= 0


def test_digest_depends_on_content_alone(grey):
    assert grey.digest == Dataset(grey.x.clone(), name="copy").digest
    assert grey.digest == grey.to(dtype=torch.float64).digest
    assert grey.digest == Dataset(grey.x.T.contiguous().T).digest
    changed = grey.x.clone()
    changed[5, 2] = 1.0
    others = [
        Dataset(changed),
        Dataset(grey.x.flatten()),
        Dataset({"x": grey.x}),
        grey.select(slice(0, 5)),
    ]
    assert len({grey.digest, *(other.digest for other in others)}) == 5


def test_digest_of_many_rows_is_that_of_the_whole():
    x = torch.randn(10_000, 2, dtype=torch.float64)
    expected = hashlib.sha256(b"0[10000, 2]" + x.numpy().tobytes()).hexdigest()
    assert Dataset(x).digest == expected


def test_to_changes_floating_tensors_alone():
    data = Dataset({"x": torch.zeros(2, 3), "index": torch.tensor([0, 1])}).to(dtype=torch.float64)
    assert data.x.dtype == torch.float64
    assert data.kwargs["index"].dtype == torch.int64
    assert (
        Dataset(torch.zeros(2), labels=torch.zeros(2, dtype=torch.long))
        .to("meta")
        .labels.device.type
        == "meta"
    )


def test_select_takes_slices_indices_and_masks(grey):
    for rows in (slice(1, 3), torch.tensor([1, 2]), torch.arange(6).sub(1.5).abs() < 1):
        chosen = grey.select(rows)
        assert chosen.labels.tolist() == [1, 2]
        assert torch.equal(chosen.x, grey.x[1:3])


def test_support_gives_levels():
    assert Dataset(torch.tensor([0.0, 1.0]), support=2).support is constraints.boolean
    assert Dataset(torch.tensor([0.0, 1.0]), support=constraints.boolean).levels == 2
    assert Dataset(torch.tensor([0.0, 16.0]), support=17).levels == 17
    assert Dataset(torch.tensor([0.0, 5.0]), support=constraints.nonnegative_integer).levels is None
    assert (
        Dataset(torch.tensor([1.0, 5.0]), support=constraints.integer_interval(1, 5)).levels is None
    )
    assert Dataset(torch.tensor([0.0, 5.0])).levels is None


def test_labels_become_an_argument_when_asked_for(grey):
    assert sorted(grey.labelled("digit").kwargs) == ["digit", "x"]
    assert grey.labelled().digest != grey.digest


def test_images_unfold_row_by_row():
    data = Dataset(torch.arange(12.0).reshape(2, 6), image_shape=(1, 2, 3)).as_images()
    assert data.x[0, 0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert data.num_dims == 6


@pytest.mark.parametrize("levels", [2, 4, 17, 256])
def test_dequantised_values_stay_in_their_level(levels):
    x = torch.arange(levels, dtype=torch.float32).repeat(20_000 // levels + 1)
    data = Dataset(x, support=levels).dequantise(seed=1)
    assert torch.equal((data.x.double() * levels).floor().float(), x)
    within = data.x.double() * levels - x
    assert abs(within.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(x))
    assert abs(within.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / len(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_dequantised_as_floating_levels(dtype):
    grey = torch.arange(256)
    data = Dataset(grey.to(dtype), support=256).dequantise(seed=1)
    assert torch.equal(data.x, Dataset(grey.float(), support=256).dequantise(seed=1).x)


def test_largest_noise_does_not_round_into_the_next_level(monkeypatch):
    almost_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).expand(256)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: almost_one)
    data = Dataset(torch.arange(256.0), support=256).dequantise()
    assert torch.equal((data.x.double() * 256).floor(), torch.arange(256).double())


def test_dequantisation_bound_is_tight_for_a_piecewise_constant_density(grey):
    log_share = torch.log_softmax(
        torch.randn(4, dtype=torch.float64), 0
    )  # P(level), independent dimensions
    exact = log_share[grey.x.long()].sum(-1)
    data = grey.dequantise(seed=3)
    density = (log_share + math.log(4))[(data.x.double() * 4).long()].sum(-1)
    torch.testing.assert_close(density + data.log_offset, exact)
    torch.testing.assert_close(data.bits_per_dim(density), grey.bits_per_dim(exact))


def test_dequantisation_bounds_from_below_on_average(grey):
    normal = Normal(torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64))
    edges = torch.arange(5, dtype=torch.float64) / 4
    exact = normal.cdf(edges).diff().log()[grey.x.long()].sum(-1)
    drawn = [grey.dequantise(seed) for seed in range(200)]
    bounds = torch.stack(
        [normal.log_prob(data.x.double()).sum(-1) + data.log_offset for data in drawn]
    )
    error = bounds.std(0) / math.sqrt(len(bounds))
    assert (bounds.mean(0) < exact + 3 * error).all()
    assert (bounds.mean(0) < exact - 3 * error).any()


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_logit_offset_is_the_log_jacobian(alpha):
    x = torch.rand(5, 3, dtype=torch.float64)
    data = Dataset(x, support=constraints.unit_interval).logit(alpha)

    def forward(row):
        return torch.logit(alpha + (1 - 2 * alpha) * row)

    jacobians = torch.stack([torch.autograd.functional.jacobian(forward, row) for row in x])
    torch.testing.assert_close(data.log_offset, torch.linalg.slogdet(jacobians).logabsdet)
    torch.testing.assert_close(data.x, forward(x))


def test_offsets_of_successive_transforms_add_up_and_travel_with_rows(grey):
    dequantised = grey.dequantise()
    data = dequantised.logit(0.05)
    alone = Dataset(dequantised.x, support=constraints.unit_interval).logit(0.05)
    torch.testing.assert_close(data.log_offset, alone.log_offset - 3 * math.log(4))
    rows = torch.tensor([4, 0])
    torch.testing.assert_close(data.select(rows).log_offset, data.log_offset[rows])
    split = data.split((0.5, 0.0, 0.5))
    torch.testing.assert_close(split.test.log_offset, data.log_offset[split.test.labels])


def test_logit_is_finite_at_the_ends():
    data = Dataset(torch.tensor([[0.0, 1.0]]), support=constraints.unit_interval).logit(1e-6)
    assert data.x.isfinite().all()
    assert data.log_offset.isfinite().all()


def test_uniform_model_costs_log2_levels_bits(grey):
    log_prob = torch.full((6,), -3 * math.log(4))
    torch.testing.assert_close(
        grey.bits_per_dim(log_prob), torch.full((6,), 2.0, dtype=torch.float64)
    )
    particles = grey.bits_per_dim(log_prob.expand(5, 6))
    assert particles.shape == (5, 6)


def test_stochastic_binarisation_has_the_right_means():
    x = torch.arange(5.0).repeat_interleave(20_000)
    binary = Dataset(x, support=5).binarise(seed=0)
    share = binary.x.reshape(5, -1).mean(-1)
    expected = torch.arange(5) / 4
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert binary.levels == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dataset([[1.0, 2.0]]), TypeError, "expected tensors, got list for 0"),
        (lambda: Dataset(np.zeros(3)), TypeError, "tuple or dict of Tensors, got ndarray"),
        (
            lambda: Dataset({"x": np.zeros(3)}),
            TypeError,
            "got ndarray for x; convert it by torch.as_tensor",
        ),
        (lambda: Dataset(()), ValueError, "at least one tensor"),
        (lambda: Dataset(torch.tensor(1.0)), ValueError, "first dimension counts the data"),
        (
            lambda: Dataset((torch.zeros(3), torch.zeros(4))),
            ValueError,
            "must be the same for all tensors",
        ),
        (
            lambda: Dataset(torch.zeros(3), labels=torch.zeros(2)),
            ValueError,
            "must be the same for all tensors",
        ),
        (
            lambda: Dataset(torch.zeros(3), log_offset=torch.zeros(2)),
            ValueError,
            "must be the same for all tensors",
        ),
        (lambda: Dataset(torch.zeros(0, 3)), ValueError, "has no rows"),
        (lambda: Dataset(torch.zeros(3), split_sizes=(1, 1, 2)), ValueError, "adding up to 3 rows"),
        (lambda: Dataset(torch.zeros(3), support=1), ValueError, "number of levels of at least 2"),
        (
            lambda: Dataset(torch.tensor([0.0, 2.0, math.nan]), support=2),
            ValueError,
            "2 values .* 1 of them NaN",
        ),
        (
            lambda: Dataset(torch.zeros(3)).train,
            ValueError,
            r"no train split; make one with .split",
        ),
        (
            lambda: Dataset(torch.zeros(3)).split((0.5, 0.5)),
            ValueError,
            "three non-negative fractions",
        ),
        (
            lambda: Dataset(torch.zeros(3)).split((0.5, 0.6, -0.1)),
            ValueError,
            "three non-negative fractions",
        ),
        (
            lambda: Dataset(torch.zeros(3)).split((0.5, 0.1, 0.1)),
            ValueError,
            "three non-negative fractions",
        ),
        (lambda: Dataset(torch.zeros(3)).labelled(), ValueError, "has no labels"),
        (lambda: Dataset(torch.zeros(3, 4)).as_images(), ValueError, "with 4 pixels"),
        (
            lambda: Dataset(torch.zeros(3, 4), image_shape=(1, 3, 3)).as_images(),
            ValueError,
            "with 4 pixels",
        ),
        (
            lambda: Dataset(torch.zeros(3)).dequantise(),
            ValueError,
            "cannot dequantise .* give support=L",
        ),
        (lambda: Dataset(torch.zeros(3)).binarise(), ValueError, "cannot binarise"),
        (
            lambda: Dataset(torch.zeros(3), support=2).logit(),
            ValueError,
            "dequantise discrete data first",
        ),
        (
            lambda: Dataset(torch.zeros(3), support=2).dequantise().logit(0.5),
            ValueError,
            "between 0 and 1/2",
        ),
        (
            lambda: Dataset(torch.zeros(3)).bits_per_dim(torch.zeros(2)),
            ValueError,
            "for each of 3 data",
        ),
    ],
)
def test_bad_arguments_say_what_was_expected(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_parts_are_taken_by_slices_lists_and_masks(grey):
    assert torch.equal(grey[:3].x, grey.x[:3])
    assert torch.equal(grey[[2, 0]].x, grey.x[[2, 0]])
    assert torch.equal(grey[torch.arange(len(grey)) < 2].x, grey.x[:2])
    with pytest.raises(TypeError, match=r"data\[1:2\]"):
        grey[1]
    with pytest.raises(TypeError, match="loop over its tensors"):
        list(grey)
