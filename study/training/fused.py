"""Trains several trials in one process, so that their networks take every step as one.

Each trial runs the same code as a trial alone, in a thread of its own. Only one thread runs at a time: a trial waits
where it needs a forward or a backward pass. Once all trials wait, the passes of their networks are computed together
(study/models/fused.py), and the trials continue, one after the other. If a trial ends, for whatever reason, the others
continue; its place among the fused networks stays, so that the others keep their numbers.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from study.models.fused import FusedNetworks, NotFusableError
from study.plan.job import Job
from study.record.layout import TrialFolder
from study.training.preemption import StopRequest, handle_signals
from study.training.process_setup import set_up_process
from study.training.trial import run_job


def run_fused_jobs(jobs: Sequence[Job], stop_request: StopRequest | None = None) -> None:
    """Trains those trials of a group that are given, each as `run_job` does. Their output goes to their own logs."""
    set_up_process(jobs[0].threads)
    runs = {}
    with handle_signals(stop_request) as stop_request, _separate_output():
        for job in jobs:
            run = partial(run_job, job, stop_request)
            runs[job.group.index(job.trial.key)] = FusedTrial(run, TrialFolder(job.folder).log, len(jobs))
        run_fused(runs, len(jobs[0].group))


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """What a trial waits for: the network's output for a batch of images."""

    network: nn.Module
    images: Tensor
    modes: tuple[Any, ...]

    @property
    def key(self) -> Hashable:
        """Passes with equal keys can be computed as one."""
        return self.network.training, self.modes, self.images.shape, self.images.dtype, self.images.device


@dataclass(frozen=True, kw_only=True)
class BackwardPass:
    """What a trial waits for: the gradients of a loss, which came from networks that were `fused`, if any."""

    loss: Tensor
    fused: FusedNetworks | None

    @property
    def key(self) -> Hashable:
        """Passes with equal keys can be computed as one."""
        return id(self.fused)


class Ending:
    """What a trial waits for once it has its result: that no other trial needs this process for passes."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What trials get in place of the result of a pass that failed: each raises the error, and records it as its own.

    traceback: that of the pass alone; the one of `error` grows where a trial raises it.
    """

    error: Exception
    traceback: TracebackType | None


Wanted = ForwardPass | BackwardPass | Ending | None


class FusedTrial:
    """A trial's side: it asks for passes, and continues when they have been computed. `trials`: number of the group."""

    def __init__(self, run: Callable[[FusedTrial], None], log: Path, trials: int) -> None:
        self.trials = trials
        self.log = _open_log(log)
        self.fused: FusedNetworks | None = None  # of the last forward pass
        self._run = run
        self._thread: threading.Thread | None = None
        self._wanted: SimpleQueue[Wanted] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()

    # --------------------------------------------------------------------------------- called by the trial's thread

    def forward(self, network: nn.Module, images: Any) -> Any:
        """The output of `network`."""
        device = images.device.type
        modes = (
            torch.is_grad_enabled(),
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        return self._ask(ForwardPass(network=network, images=images, modes=modes))

    def backward(self, loss: Tensor) -> None:
        """Sets the gradients of the trial's network to those of `loss`; passes of single networks add them."""
        self._ask(BackwardPass(loss=loss, fused=self.fused))

    def finish(self) -> None:
        """Waits until no other trial needs a pass."""
        self._ask(Ending())

    def _ask(self, wanted: Wanted) -> Any:
        self._wanted.put(wanted)
        answer = self._answers.get()
        if isinstance(answer, Failure):
            raise answer.error.with_traceback(answer.traceback)
        return answer

    def _work(self) -> None:
        try:
            self._run(self)
        finally:
            self._wanted.put(None)

    # ---------------------------------------------------------------------------------- called by the main thread

    def resume(self, answer: Any) -> Wanted:
        """Runs the trial until it waits again; None if it has ended. What it prints goes to its own log."""
        for stream in (1, 2):
            os.dup2(self.log, stream)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        else:
            self._answers.put(answer)
        wanted = self._wanted.get()
        for output in (sys.stdout, sys.stderr):
            output.flush()
        if wanted is None:
            self._thread.join()
            os.close(self.log)
        return wanted


def _open_log(log: Path) -> int:
    """A descriptor of the trial's log, or of this process's errors if the trial cannot have one."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return os.dup(2)


@contextmanager
def _separate_output() -> Iterator[None]:
    """Inside the context, descriptors 1 and 2 are those of the trials' logs; after it, they are as before."""
    kept = {number: os.dup(number) for number in (1, 2)}
    for output in (sys.stdout, sys.stderr):
        output.flush()
    try:
        yield
    finally:
        for number, descriptor in kept.items():
            os.dup2(descriptor, number)
            os.close(descriptor)


def run_fused(trials: Mapping[int, FusedTrial], places: int) -> None:
    """Runs trials to their ends, each at its place among the `places` of the fused networks.

    Forward passes wait until no backward pass is wanted, so that trials that resume at different steps stay together.
    """
    hub = _Hub(places)
    answers: dict[int, Any] = dict.fromkeys(sorted(trials))
    ending = []
    waiting: defaultdict[tuple[type, Hashable], dict[int, Any]] = defaultdict(dict)
    while answers:
        for place, answer in answers.items():
            wanted = trials[place].resume(answer)
            if isinstance(wanted, Ending):
                ending.append(place)
            elif wanted is not None:
                waiting[type(wanted), wanted.key][place] = wanted
        answers = {}
        backward = [key for key in waiting if key[0] is BackwardPass]
        for key in backward or list(waiting):
            answers |= hub.compute(waiting.pop(key), trials)
        answers = dict(sorted(answers.items()))
    for place in ending:
        trials[place].resume(None)


class _Hub:
    """Computes passes of several trials as one, and keeps the fused networks of the last forward passes."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.cache: dict[tuple[int, ...], FusedNetworks | None] = {}

    def compute(self, passes: Mapping[int, Any], trials: Mapping[int, FusedTrial]) -> dict[int, Any]:
        """The results of passes with one key, by place."""
        try:
            if isinstance(next(iter(passes.values())), BackwardPass):
                return self._compute_backward(passes)
            return self._compute_forward(passes, trials)
        except Exception as error:
            return dict.fromkeys(passes, Failure(error=error, traceback=error.__traceback__))

    def _compute_backward(self, passes: Mapping[int, BackwardPass]) -> dict[int, Any]:
        if (fused := next(iter(passes.values())).fused) is None:
            return _compute_each(passes, lambda each: each.loss.backward())
        fused.backward({place: each.loss for place, each in passes.items()})
        return dict.fromkeys(passes)

    def _compute_forward(self, passes: Mapping[int, ForwardPass], trials: Mapping[int, FusedTrial]) -> dict[int, Any]:
        first = next(iter(passes.values()))
        with_gradients, autocast = first.modes
        fused = self._find_fused({place: each.network for place, each in passes.items()})
        for place in passes:
            trials[place].fused = fused
        with (
            torch.set_grad_enabled(with_gradients),
            torch.autocast(first.images.device.type, autocast, enabled=autocast is not None),
        ):
            if fused is None:
                return _compute_each(passes, lambda each: each.network(each.images))
            return fused.forward({place: each.images for place, each in passes.items()})

    def _find_fused(self, networks: Mapping[int, nn.Module]) -> FusedNetworks | None:
        """The networks as one, or None if that is not possible. Only the last ones are kept."""
        key = tuple(id(networks.get(place)) for place in range(self.places))
        found = self.cache.get(key)
        if key not in self.cache or (found is not None and not found.is_intact):
            self.cache.clear()
            spare = next(iter(networks.values()))
            try:
                self.cache[key] = FusedNetworks(
                    [networks[place] if place in networks else _copy(spare) for place in range(self.places)]
                )
            except NotFusableError:
                self.cache[key] = None
        return self.cache[key]


def _copy(network: nn.Module) -> nn.Module:
    """A copy whose tensors have memory of their own; `deepcopy` copies all of a tensor that another is a view of."""
    copied = copy.deepcopy(network)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data, tensor.grad = tensor.data.clone(), None
    return copied


def _compute_each(passes: Mapping[int, Any], compute: Callable[[Any], Any]) -> dict[int, Any]:
    """The results of passes that cannot be computed as one, by place, or the error that ended one of them."""
    results: dict[int, Any] = {}
    for place, each in passes.items():
        try:
            results[place] = compute(each)
        except Exception as error:
            results[place] = Failure(error=error, traceback=error.__traceback__)
    return results
