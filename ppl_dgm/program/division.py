"""Division of arguments into data and shared values.

It is learnt from a program's densities, or declared by the user.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, count
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_dgm.program.arguments import names_of, select_data, tensors_of
from ppl_dgm.program.handlers import SizedPlates, Substitute
from ppl_dgm.program.isolation import undisturbed, undone
from ppl_dgm.program.log_densities import count_observed, log_prob_of
from ppl_dgm.program.operands import (
    SameShares,
    UnlikeError,
    check_same_operands,
    disjoint_places,
    record,
)
from ppl_dgm.program.plates import in_plate, plate_frames
from ppl_dgm.program.pyro_patches import right_draws, unvalidated
from ppl_dgm.program.sites import Site, is_deterministic, placed_sites, random_sites
from ppl_dgm.program.structure import Division

__all__ = ["PROOF_DATA", "lazy_division", "learn_division"]

PROOF_DATA = 4
MOST_DATA = 1024  # in a part
MOST_NUMBERS = 2**11  # about, in a part: what a net makes of them is kept in memory
MAX_ORDERS = 3  # tensors by whose numbers the data are ordered
MAX_TRIALS = 64  # choices of shared arguments
Held = frozenset[int]


def lazy_division(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    plate: str,
    shared: Collection[str],
) -> Division:
    """What `learn_division` will find when somebody asks."""
    declared = places_of(model, args, kwargs, shared)
    return Division(partial(learn_division, model, guide, args, kwargs, plate, declared))


def places_of(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], shared: Collection[str]
) -> Held:
    """Find the places of named arguments among the tensors.

    All names must exist.
    """
    names = names_of(getattr(model, "fn", model), args, kwargs)
    if unknown := sorted(set(shared) - set(names)):
        raise ValueError(
            f"shared names {unknown}, which are no tensor arguments of the program; those are "
            f"{names}"
        )
    return frozenset(place for place, name in enumerate(names) if name in shared)


def learn_division(
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    plate: str,
    declared: Held = frozenset(),
) -> Held | None:
    """Find the arguments that all data share.

    With them held, parts of the data have the densities that they have in the whole.

    Every site inside the data plate must have, on parts of the data alone, the log density that
    it has for them among all data, and every site outside must have the same one. So must the model
    compute it from the same numbers, which tells what counts at few latents only. Arguments whose
    first dimension happens to be the number of data, but which every datum uses whole, are found
    so.

    Returns:
        Places of the shared tensors in the order of `tensors_of`, or None where the program takes
            no part of its data.

    Raises:
        ValueError: where several choices would do, naming the arguments; the program may leave no
            trace otherwise.
    """
    modules = [fn for fn in (model, guide) if isinstance(fn, torch.nn.Module)]
    with undone(*modules), undisturbed(*modules), SizedPlates(), unvalidated(), right_draws():
        trial = Trial(model, guide, args, kwargs, plate)
        return trial.learn(declared) if trial.is_possible() else None


class Trial:
    """Trial runs of a program on parts of its data.

    They are compared with a run on all data. Some arguments are held whole.
    """

    def __init__(
        self, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any], plate: str
    ) -> None:
        self.model, self.guide, self.plate = model, guide, plate
        self.args, self.kwargs = args, kwargs
        try:
            self.whole = Run.of(guide, model, args, kwargs, None)
        except Exception:  # the user's own code may raise anything
            self.whole = Run({}, {}, {})
        frames = [frame for site in self.whole.sites for frame in plate_frames(site, plate)]
        self.size: int = frames[0].full_size if frames else 0
        self.divisible = all(f.dim is not None and f.size == self.size for f in frames)

    def is_possible(self) -> bool:
        """Return whether there is a data plate to divide."""
        return self.divisible and self.size > 1

    def learn(self, declared: Held) -> Held | None:
        """The fewest tensors to hold beside the declared ones."""
        sized = [
            place
            for place, tensor in enumerate(tensors_of(self.args, self.kwargs))
            if tensor.dim() and tensor.shape[0] == self.size and place not in declared
        ]
        for num_held in range(len(sized)):
            choices = list(combinations(sized, num_held))[:MAX_TRIALS]
            found = [h for h in (declared | set(more) for more in choices) if self.agrees(h)]
            if len(found) > 1:
                self.refuse(found, declared)
            if found:
                return frozenset(found[0])
        return None

    def refuse(self, found: list[Any], declared: Held) -> None:
        """Raise for arguments that may be data or not."""
        names = names_of(getattr(self.model, "fn", self.model), self.args, self.kwargs)
        held = [sorted({names[place] for place in choice - declared}) for choice in found]
        raise ValueError(
            f"each of the arguments {held} has as many rows as there are data, {self.size}, and "
            f"any of them may be what all data share; name it: shared={held[0]}"
        )

    def agrees(self, held: Collection[int]) -> bool:
        """Return whether parts of the data keep their densities.

        The densities are those that they have in the whole.
        """
        try:
            edges = (Part(self, held, places) for places in self.edges())
            if not all(part.has_densities_of_whole() for part in edges):
                return False
            windows = count()
            while self.compare(held, next(windows)):
                pass
        except Exception:  # the user's own code may raise anything on a part
            return False
        return True

    def compare(self, held: Collection[int], window: int) -> bool:
        """Compare three parts of the data with the whole.

        Their operands are compared within a window of the run.

        Returns:
            Whether there are operands after the window.

        Raises:
            UnlikeError: if a part has other densities, or sees other operands.
        """
        parts = [Part(self, held, places, window) for places in self.places()]
        if not all(part.has_densities_of_whole() for part in parts):
            raise UnlikeError("a part of the data has other densities than in the whole")
        if any(part.recording.packs for part in parts):
            return False
        whole = {name: value for name, (value, _) in self.whole.values(self.plate).items()}
        check_same_operands(
            lambda: self.run(self.args, self.kwargs, whole).densities(self.plate),
            *((part.recording, SameShares(self.size, part.places)) for part in parts),
        )
        return any(part.recording.goes_on() for part in parts)

    def run(self, *given: Any) -> "Run":
        """Run guide and model at given arguments and latents."""
        return Run.of(self.guide, self.model, *given)

    def places(self) -> list[Tensor]:
        """Choose the data of three parts.

        The last ones may be unlike the whole where data are sorted, as no others are.
        """
        data = self.data()
        numbers = sum(tensor[0].numel() for tensor in data)
        few = min(MOST_DATA, max(PROOF_DATA, MOST_NUMBERS // max(1, numbers)))
        few = max(1, min(few, self.size // 2))
        device = data[0].device if data else None
        last = torch.arange(self.size - few, self.size, device=device)
        return [last, *disjoint_places(self.size, few, device)]

    def edges(self) -> list[Tensor]:
        """Choose the lowest and the highest data.

        They are unlike the whole where it is asked whether any datum passes a threshold, or all.
        What they compute with may be unlike it for good reasons: a spline takes those beyond its
        ends apart.
        """
        few = min(PROOF_DATA, self.size // 2)
        return [part for tensor in self.data()[:MAX_ORDERS] for part in extremes(tensor, few)]

    def data(self) -> list[Tensor]:
        """List the tensors with a row for each datum."""
        tensors = tensors_of(self.args, self.kwargs)
        return [tensor for tensor in tensors if tensor.dim() and tensor.shape[0] == self.size]


def extremes(data: Tensor, few: int) -> list[Tensor]:
    """Return the places of the few lowest and highest data."""
    rows = data.detach().flatten(1) if data.dim() > 1 else data.detach()[:, None]
    rows = (rows.abs() if rows.is_complex() else rows).double().nan_to_num(nan=0.0)
    if not rows.numel():
        return []
    parts = rows.amax(1).argsort()[:few], rows.amin(1).argsort()[-few:]
    return [part.sort().values for part in parts]


class Part:
    """A part of the data of a trial, run alone."""

    def __init__(
        self, trial: Trial, held: Collection[int], places: Tensor, window: int = 0
    ) -> None:
        self.trial, self.places = trial, places
        args, kwargs = select_data(trial.args, trial.kwargs, trial.size, places, held)
        values = {
            name: self.pick(value, dim)
            for name, (value, dim) in trial.whole.values(trial.plate).items()
        }
        self.sites: list[Site] = []

        def densities() -> list[Tensor]:
            run = trial.run(args, kwargs, values)
            self.sites = run.sites
            return run.densities(trial.plate)

        self.recording = record(densities, window=window)

    def pick(self, value: Tensor, dim: int | None) -> Tensor:
        """Return the part's share of a tensor of all data.

        A tensor without a dimension of data is returned whole.
        """
        if dim is None or value.dim() < -dim or value.shape[dim] != self.trial.size:
            return value
        return value.index_select(dim, self.places.to(value.device))

    def has_densities_of_whole(self) -> bool:
        """Compare the log densities of all sites."""
        frames = [f for site in self.sites for f in plate_frames(site, self.trial.plate)]
        whole, plate = self.trial.whole, self.trial.plate
        pairs = zip(whole.densities(plate), self.recording.results, strict=True)
        return all(frame.full_size == len(self.places) for frame in frames) and all(
            equal(self.pick(one, -1 if inside else None), other)
            for inside, (one, other) in zip(whole.are_inside(plate), pairs, strict=True)
        )


@dataclass(frozen=True)
class Run:
    """Sites of one run of guide and model."""

    guide: dict[str, Site]
    model: dict[str, Site]
    scored: dict[tuple[str, str], Tensor]

    @staticmethod
    def of(
        guide: Callable,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        values: Mapping[str, Tensor] | None,
    ) -> "Run":
        """Run guide and model once.

        Latents are given, or else drawn by the guide.
        """
        with Substitute(values or {}):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model = model if values else poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(model).get_trace(*args, **kwargs)
        for trace in map(count_observed, (guide_trace, model_trace)):
            if any(map(is_weighted, trace.nodes.values())):
                trace.compute_log_prob()  # weights of all data do not fit a few
        guides = dict(random_sites(guide_trace))
        models = {site["name"]: site for site in placed_sites(model_trace)}
        scored = {("guide", name): kept_number(site) for name, site in guides.items()}
        scored |= {("model", name): kept_number(site) for name, site in models.items()}
        return Run(guides, models, scored)

    @property
    def sites(self) -> list[Site]:
        """All sites."""
        return [*self.guide.values(), *self.model.values()]

    def values(self, plate: str) -> dict[str, tuple[Tensor, int | None]]:
        """Latents, and the dimension along which they differ between data."""
        return {
            name: (s["value"], -1 - s["fn"].event_dim if in_plate(s, plate) else None)
            for name, s in {**self.guide, **self.model}.items()
            if not s["is_observed"]
        }

    def densities(self, plate: str) -> list[Tensor]:
        """Return the log densities that parts must keep.

        Guide sites outside the data plate are left out, since a guide may draw them from the data
        that it sees.
        """
        return [self.scored[key] for key in self.kept(plate)]

    def are_inside(self, plate: str) -> list[bool]:
        """Return whether those densities are of sites in the plate."""
        return [in_plate(getattr(self, half)[name], plate) for half, name in self.kept(plate)]

    def kept(self, plate: str) -> list[tuple[str, str]]:
        """List the sites whose densities parts must keep."""
        return [
            (half, name)
            for half, name in self.scored
            if half == "model" or in_plate(self.guide[name], plate)
        ]


def is_weighted(site: Site) -> bool:
    """Return whether handlers mask or weight a site."""
    return site.get("mask") is not None or isinstance(site.get("scale"), Tensor)


def kept_number(site: Site) -> Tensor:
    """Return what each part must keep of a site.

    It is its log density, or of a deterministic one the sum of its values.
    """
    if not is_deterministic(site):
        return log_prob_of(site, 1.0)
    value, event = site["value"], range(-site["fn"].event_dim, 0)
    return value.sum(tuple(event)) if event else value


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether log densities agree to rounding."""
    one, other = torch.broadcast_tensors(one, other)
    return torch.allclose(one, other, 1e-3, 1e-3, equal_nan=True)
