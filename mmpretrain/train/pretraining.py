"""The one root module: a model and its objectives, sharded together and entered through ``forward`` only.

Sharding the model and its heads apart would silently untie heads that share a table with the model, so nothing else is ever the
root of a parallel plan. Objectives are grouped into views; a view is corrupted, encoded and scored as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmpretrain.objectives.base import Objective, Scored, scored
from mmpretrain.types import Batch, Score, Vocabulary

MODES = ("scores", "logits", "features", "corrupt", "hidden", "call")


class Features(NamedTuple):
    """What a contrastive loss reads, so that it can be taken over more samples than fit into memory at once."""

    values: tuple[Tensor, ...]  # (B, E) each
    logit_scale: Tensor
    logit_bias: Tensor | None


def can_cache(objective: nn.Module) -> bool:
    """True for objectives whose loss is a function of features alone (contrastive ones)."""
    return callable(getattr(objective, "loss_from_features", None)) and callable(getattr(objective, "features", None))


class View(NamedTuple):
    """Objectives that share one corrupted batch and one forward of the model."""

    name: str
    kind: str  # what the model's forward is asked for
    names: tuple[str, ...]  # objectives, in the order of the recipe
    after: str | None  # the view whose hidden states ``corrupt`` reads


def group_views(objectives: Mapping[str, Objective]) -> dict[str, View]:
    """The views of a recipe, in order.

    Raises:
        ValueError: objectives of one view differ in ``kind`` or ``after``, or two of them exchange pictures or texts, so that the label of
            one says nothing of what the other did; or ``after`` names no earlier view.
    """
    views: dict[str, View] = {}
    for name, objective in objectives.items():
        known = views.get(objective.view)
        if known is None:
            if objective.after is not None and objective.after not in views:
                raise ValueError(f"objective {name!r}: after={objective.after!r} is not the view of an earlier objective")
            views[objective.view] = View(objective.view, objective.kind, (name,), objective.after)
            continue
        if objective.kind != known.kind or objective.after != known.after:
            first = known.names[0]
            shared = f"objectives {first!r} and {name!r} share the view {objective.view!r}"
            raise ValueError(f"{shared} but differ in kind or after: give {name!r} its own view")
        if others := [one for one in known.names if _exchange_alike(objectives[one], objective)]:
            both = f"objectives {others[0]!r} and {name!r} both exchange pictures or texts of samples"
            raise ValueError(f"{both} in the view {objective.view!r}: give {name!r} its own view")
        views[objective.view] = known._replace(names=(*known.names, name))
    return views


def _exchange_alike(one: Objective, other: Objective) -> bool:
    """Whether both exchange parts of the same samples."""
    share = one.sources is None or other.sources is None or bool(set(one.sources) & set(other.sources))
    return share and one.exchanges and other.exchanges


class Pretraining(nn.Module):
    """A model with its objectives.

    Args:
        model: ``forward(batch, kind) -> hidden``, with ``spec`` and ``blocks()``.
        objectives: name -> objective, in the order of the recipe.
    """

    def __init__(self, model: nn.Module, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        if not objectives:
            raise ValueError("model.objectives is empty: name at least one objective")
        for name, objective in objectives.items():
            objective.name = name
            objective.sources = None if objective.sources is None else tuple(objective.sources)
        self.model: Any = model  # with spec and blocks()
        self.objectives = cast(Mapping[str, Objective], nn.ModuleDict(objectives))
        self.views = group_views(objectives)
        self.bound = False

    def bind(self, vocabulary: Vocabulary | None) -> None:
        """Build and tie the heads of all objectives, once.

        Raises:
            ValueError: the model cannot give what an objective reads.
        """
        if self.bound:
            return
        spec = self.model.spec
        for view in self.views.values():
            if view.kind not in spec.kinds:
                gives = f"{type(self.model).__name__} gives {', '.join(spec.kinds)}"
                raise ValueError(f"objective {view.names[0]!r} reads {view.kind!r} states; {gives}")
        for objective in self.objectives.values():
            objective.bind(spec, vocabulary)
        for objective in self.objectives.values():
            objective.connect(self.objectives)
        self.bound = True

    def order(self, names: Iterable[str] | None = None) -> tuple[View, ...]:
        """The views needed for these objectives (all if None), with only these objectives in them; views they read come first."""
        chosen = set(self.objectives if names is None else names)
        if unknown := chosen - set(self.objectives):
            raise ValueError(f"unknown objectives {sorted(unknown)}; the recipe has {list(self.objectives)}")
        needed: set[str] = set()
        for view in self.views.values():
            if chosen & set(view.names):
                link: str | None = view.name
                while link is not None and link not in needed:
                    needed.add(link)
                    link = self.views[link].after
        return tuple(v._replace(names=tuple(n for n in v.names if n in chosen)) for v in self.views.values() if v.name in needed)

    def reading(self, source: str) -> list[str]:
        """The objectives that read batches of ``source``, in order; all read one without a name."""
        return [name for name, one in self.objectives.items() if not source or one.sources is None or source in one.sources]

    @property
    def chained(self) -> bool:
        """True where the corruption of some view reads the output of another, so that counts need a forward."""
        return any(view.after is not None for view in self.views.values())

    def corrupt(self, batch: Batch, names: Iterable[str] | None = None) -> dict[str, Batch]:
        """The corrupted batch of every view (without gradients). All objectives of a view that read the source of the batch corrupt it, in
        order, whether drawn or not, so that leaving out the loss of one does not change the input of another."""
        views: dict[str, Batch] = {}
        outputs: dict[str, Any] = {}
        order = self.order(names)
        read = {view.after for view in order if view.after is not None}
        reading = set(self.reading(batch.source))
        with torch.no_grad():
            for view in order:
                corrupted = batch
                for name in (name for name in self.views[view.name].names if name in reading):
                    corrupted = self.objectives[name].corrupt(corrupted, outputs)
                views[view.name] = corrupted
                if view.name in read:
                    outputs[view.name] = self.model(corrupted, view.kind)
        return views

    def counts(self, views: Mapping[str, Batch], names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The denominators of the objectives on corrupted batches, known before the forward of the model."""
        with torch.no_grad():
            pairs = ((name, views[view.name]) for view in self.order(names) for name in view.names)
            return {name: torch.as_tensor(self.objectives[name].count(batch)).float() for name, batch in pairs}

    def shared(self, views: Mapping[str, Batch], names: Iterable[str] | None = None) -> list[tuple[str, ...]]:
        """The views that are scored, in groups that share a forward."""
        groups: dict[tuple[Any, ...], tuple[str, ...]] = {}
        for view in (view for view in self.order(names) if view.names):
            key = _input(view, views[view.name])
            groups[key] = (*groups.get(key, ()), view.name)
        return list(groups.values())

    def forward(self, batch: Any, names: Sequence[str] | None = None, mode: str = "scores") -> Any:
        """One pass over a micro-batch.

        Args:
            batch: a ``Batch``, the corrupted batches {view: Batch} of ``corrupt``, or the function of mode ``call``.
            names: the objectives to score; all if None.
            mode: ``scores`` -> {objective: Score}; ``logits`` -> {objective: Scored}; ``features`` -> {objective: Features} for
                objectives that can be cached, Score for the others; ``corrupt`` -> {view: Batch}, what ``corrupt`` gives; ``hidden`` ->
                {view: hidden states of the batch as it is}, for evaluation; ``call`` -> ``batch(model, objectives)``, any computation
                that needs the parameters whole.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}, expected one of {MODES}")
        if mode == "call":
            return batch(self.model, self.objectives)
        if mode == "corrupt":
            return self.corrupt(batch, names)
        order = self.order(names)
        if mode == "features":  # what is cached comes first, as in the forward whose dropout is replayed, which had nothing else
            order = tuple(sorted(order, key=lambda view: not any(can_cache(self.objectives[name]) for name in view.names)))
        if mode == "hidden":
            views: Mapping[str, Batch] = {view.name: batch for view in order}
        else:
            views = self.corrupt(batch, names) if isinstance(batch, Batch) else batch
        hidden: dict[str, Any] = {}
        memo: dict[tuple[Any, ...], Any] = {}
        results: dict[str, Any] = {}
        for view in order:
            if not view.names:
                continue
            corrupted = views[view.name]
            key = _input(view, corrupted)
            if key not in memo:
                memo[key] = self.model(corrupted, view.kind)
            hidden[view.name] = memo[key]
            if mode != "hidden":
                for name in view.names:
                    results[name] = self._result(self.objectives[name], memo[key], corrupted, mode)
        return hidden if mode == "hidden" else results

    @staticmethod
    def _result(objective: Any, hidden: Any, batch: Batch, mode: str) -> Score | Scored | Features:
        if mode == "logits":
            return scored(objective, hidden, batch)
        if mode == "features" and can_cache(objective):
            bias = hidden.logit_bias
            return Features(tuple(objective.features(hidden, batch)), hidden.logit_scale.clone(), None if bias is None else bias.clone())
        return objective(hidden, batch)

    def after_step(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Clamps and the like of all objectives, after an optimiser step; what ``pooled`` gives."""
        with torch.no_grad():
            for objective in self.objectives.values():
                objective.after_step(self.model)
        return self.pooled()

    def pooled(self) -> dict[str, tuple[Tensor, Tensor]]:
        """objective/statistic -> (value, 1), over all ranks, of what the objectives saw since the last call. Every rank must call it."""
        with torch.no_grad():
            return {f"{name}/{stat}": pair for name, one in self.objectives.items() for stat, pair in one.pooled().items()}

    def blocks(self) -> list[nn.Module]:
        """The repeated units of the model, for sharding, checkpointing and compilation."""
        return list(self.model.blocks())


def _input(view: View, batch: Batch) -> tuple[Any, ...]:
    """What a forward reads: views whose text, image, regions and codes nobody has touched share one."""
    return (view.kind, id(batch.text), id(batch.image), id(batch.regions), id(batch.codes), id(batch.draw_keys_B))


def ties(module: nn.Module) -> list[tuple[str, ...]]:
    """Groups of names that are one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def assert_tied(module: nn.Module, groups: Sequence[tuple[str, ...]]) -> None:
    """Raise RuntimeError unless each group of names still is one parameter."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for names in groups:
        if any(parameters[name] is not parameters[names[0]] for name in names):
            raise RuntimeError(f"the parallel plan has untied {' and '.join(names)}")


def materialise(module: nn.Module, device: torch.device | None = None) -> None:
    """Give parameters born on the meta device real, freshly initialised values; ties are kept.

    Raises:
        ValueError: a module with parameters of its own on the meta device lacks ``reset_parameters``.
    """
    groups = ties(module)
    fresh: list[Any] = [m for m in module.modules() if any(t.is_meta for t in (*m.parameters(recurse=False), *m.buffers(recurse=False)))]
    if not fresh:
        return
    for part in fresh:
        if not callable(getattr(part, "reset_parameters", None)):
            raise ValueError(f"{type(part).__name__} has parameters on the meta device and no reset_parameters()")
    module.to_empty(device=device or torch.device("cpu"))
    for names in groups:  # to_empty made one copy for each name
        owner, _, leaf = names[0].rpartition(".")
        shared = getattr(module.get_submodule(owner), leaf)
        for name in names[1:]:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, shared)
    with torch.no_grad():
        for part in reversed(fresh):  # children before their parents
            part.reset_parameters()
