"""The number guard: all ranks agree, before the optimiser moves anything, whether a step is finite and in keeping with those before it.

One small collective per step carries loss, gradient norm and a flag. What follows is a policy: ``stop``, ``skip`` or ``rollback`` for
numbers that are not finite; ``log``, ``skip`` or ``rollback`` for spikes. A spike is a loss or a norm above mean + 6 standard deviations of
the 128 steps before it (OLMo-core's rule). The keys of the samples of a bad step go to ``events.jsonl``.

On CUDA, with a fused optimiser and without loss scaling, the host reads nothing: the optimiser itself leaves a bad step out
(``found_inf``), and the host learns of it ``DELAY`` steps later, when the answer has long been there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mmpretrain.train import distributed, events
from mmpretrain.types import Batch

DELAY = 8  # steps after which the host reads the verdict of a step where it did not wait for it
WINDOW, SIGMAS = 128, 6.0
_NAMED = 4096  # keys written down for one step


class NonFiniteStep(RuntimeError):
    """A loss or a gradient norm is NaN or infinite, or spikes go on."""


class Spikes:
    """Loss and gradient norm of the last 128 steps, on the device. Values that are not finite are entered as the mean.

    Nothing is called a spike before half of the window is filled.
    """

    def __init__(self) -> None:
        self.values_2W = torch.zeros(2, WINDOW)
        self.seen = 0

    def judge(self, x_2: Tensor) -> Tensor:
        """Whether either of (loss, norm) is a spike, a bool scalar; then both are entered."""
        self.values_2W = self.values_2W.to(x_2.device)
        filled = self.values_2W[:, : min(self.seen, WINDOW)]
        mean_2 = filled.mean(1) if self.seen else torch.zeros_like(x_2)
        spike = torch.zeros((), dtype=torch.bool, device=x_2.device)
        if self.seen >= WINDOW // 2:
            deviation_2 = torch.maximum(filled.std(1), 1e-4 * mean_2.abs())  # of constants no rounding error is a spike
            spike = (x_2 > mean_2 + SIGMAS * deviation_2).any()
        self.values_2W[:, self.seen % WINDOW] = torch.where(torch.isfinite(x_2), x_2, mean_2)
        self.seen += 1
        return spike

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values_2W.cpu().clone(), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values_2W, self.seen = state["values"].clone(), int(state["seen"])


class Verdict(NamedTuple):
    """What is known of one step. ``facts_4``: loss, norm, ranks where something is not finite, spike; the same on every rank."""

    step: int
    keys: tuple[tuple[str, ...], ...]  # of the micro-batches of this rank
    finite_K: Tensor
    facts_4: Tensor
    ready: Any = None  # the CUDA event after which facts_4 is on the host


class StepGuard:
    """Judges every step and acts by policy.

    Args:
        on_nonfinite: ``stop``, ``skip`` or ``rollback``.
        on_spike: ``log``, ``skip`` or ``rollback``.
        max_skips: so many bad steps in a row stop the run.
    """

    def __init__(
        self,
        on_nonfinite: Literal["stop", "skip", "rollback"] = "stop",
        on_spike: Literal["log", "skip", "rollback"] = "log",
        max_skips: int = 10,
    ) -> None:
        self.on_nonfinite, self.on_spike, self.max_skips = on_nonfinite, on_spike, max_skips
        self.spikes = Spikes()
        self.in_a_row = self.logged = 0
        self.wants_rollback = False
        self.pending: deque[Verdict] = deque()
        self._before: list[tuple[Tensor, Tensor]] = []  # buffers, and what they were before the step
        self._left_out: Tensor | None = None  # bool, whether the step is left out

    def keep(self, root: nn.Module) -> None:
        """Before the forward of a step that may be skipped: remember what the optimiser does not move, its buffers (running statistics of
        norms, vectors of a codebook)."""
        if "skip" in (self.on_nonfinite, self.on_spike):
            self._before = [(buffer, buffer.clone()) for buffer in root.buffers()]

    @torch.no_grad()
    def put_back(self) -> None:
        """At the end of a step: its buffers as they were, where it is left out."""
        if self._left_out is not None:
            for buffer, before in self._before:
                buffer.copy_(torch.where(self._left_out, before, buffer))
        self._before, self._left_out = [], None

    def passes(self, trainer: Any, optimizer: Any, batches: Sequence[Batch], result: Any, norm: Tensor, scaled: bool) -> bool:
        """Whether the optimiser may move. Every rank must call it, once per step, and gets the same answer.

        Args:
            result: the ``StepResult``.
            norm: the total gradient norm, equal on every rank.
            scaled: fp16's loss scaling is on; the scaler skips overflows of the gradient itself, and they are no spikes either.

        Raises:
            NonFiniteStep: by policy ``stop``, or after ``max_skips`` bad steps in a row.
        """
        finite = result.finite_K.all()
        bad = ~finite if scaled else ~(finite & torch.isfinite(norm))
        facts_3 = torch.stack([result.loss.detach().float(), norm.float(), bad.float()]).to(norm.device)
        facts_3 = distributed.sum_(facts_3)
        facts_2 = facts_3[:2] / distributed.world_size()
        judged_2 = facts_2
        if scaled:  # NaN is above nothing
            judged_2 = torch.stack([facts_2[0], torch.where(torch.isfinite(facts_2[1]), facts_2[1], torch.nan)])
        spike = self.spikes.judge(judged_2)
        facts_4 = torch.cat([facts_2, facts_3[2:], spike[None]])
        verdict = Verdict(trainer.global_step, tuple(batch.keys for batch in batches), result.finite_K, facts_4)
        if not scaled and not _waits(norm, optimizer):
            leave_out = facts_3[2] > 0
            leave_out = leave_out | spike if self.on_spike == "skip" else leave_out
            optimizer.found_inf = leave_out.float()
            self._left_out = leave_out
            self.pending.append(_on_its_way(verdict))
            self.settle(trainer, DELAY)
            return True
        passed = self._act(trainer, verdict)
        if not passed:
            self._left_out = torch.ones((), dtype=torch.bool, device=norm.device)
        return passed

    def settle(self, trainer: Any, older_than: int = 0) -> None:
        """Act on the verdicts that the host has not read yet, but those of the last ``older_than`` steps."""
        while self.pending and self.pending[0].step <= trainer.global_step - older_than:
            verdict = self.pending.popleft()
            verdict.ready.synchronize()
            self._act(trainer, verdict)
            if self.wants_rollback:  # the steps since then are undone with it
                self.pending.clear()

    def _act(self, trainer: Any, verdict: Verdict) -> bool:
        loss, norm, bad, spike = verdict.facts_4.tolist()
        if not bad and not spike:
            self.in_a_row = 0
            return True
        policy = self.on_nonfinite if bad else self.on_spike
        keys = suspects(verdict.keys, verdict.finite_K)
        message = describe(verdict.step, loss, norm, keys, "is not finite" if bad else f"is above {SIGMAS:g} standard deviations")
        facts = {"at": verdict.step, "loss": loss, "grad_norm": norm, "policy": policy, "samples": len(keys), "keys": keys[:_NAMED]}
        events.note(trainer, "nonfinite" if bad else "spike", **facts)
        if policy == "log":
            self.logged += 1
            if self.logged & (self.logged - 1) == 0:  # the 1st, 2nd, 4th, ...; all of them are in the file
                rank_zero_warn(f"{message}. {self.logged} so far in this run, written to {events.FILE}")
            return True
        self.in_a_row += 1
        if policy == "stop":
            raise NonFiniteStep(f"{message}. Nothing was updated; model.on_nonfinite=skip leaves such steps out")
        if self.in_a_row >= self.max_skips:
            raise NonFiniteStep(f"{message}. {self.in_a_row} steps in a row were {'not finite' if bad else 'bad'}")
        self.wants_rollback = policy == "rollback"
        rank_zero_warn(f"{message}. The step is {'skipped' if policy == 'skip' else 'undone'}")
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self.spikes.state_dict(), "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spikes.load_state_dict(state["spikes"])
        self.in_a_row = int(state["in_a_row"])


def _waits(norm: Tensor, optimizer: Any) -> bool:
    """Whether the host must read the verdict before the optimiser moves: not on CUDA, where every group is stepped by a fused kernel."""
    return not (norm.is_cuda and all(group.get("fused") for group in optimizer.param_groups))


def _on_its_way(verdict: Verdict) -> Verdict:
    """With its facts under way to the host."""
    facts_4 = torch.empty(4, pin_memory=True)
    facts_4.copy_(verdict.facts_4, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return verdict._replace(facts_4=facts_4, ready=ready)


def suspects(keys_K: Sequence[Sequence[str]], finite_K: Tensor) -> list[str]:
    """Keys of the samples of the micro-batches whose loss is not finite, on all ranks; if every loss is finite (the gradient is not, or
    it is a spike), the keys of the whole step. Every rank must call it."""
    bad = [key for keys, fine in zip(keys_K, finite_K.tolist(), strict=True) if not fine for key in keys]
    everywhere = distributed.gather_objects((bad, [key for keys in keys_K for key in keys]))
    named = [key for keys, _ in everywhere for key in keys]
    return named or [key for _, keys in everywhere for key in keys]


def describe(step: int, loss: float, norm: float, keys: Sequence[str], what: str) -> str:
    """One line for the log or the error."""
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return f"step {step}: loss {loss:g}, gradient norm {norm:g} {what}; samples: {shown}"
