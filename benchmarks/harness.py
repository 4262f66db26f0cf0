"""Times variants of one computation against each other and refuses to time a wrong one.

Every variant is first compared with the definition in higher precision. Then all are timed in turns (A B C A B C ...),
so that a machine that slows down or speeds up does so for all of them; medians and the 20th and 80th percentiles are
reported. On a GPU events are timed, and every run starts with a cold L2 cache.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from d2ls_fast.benchmarks.memory import peak_extra

BASELINE_MARGIN = 4
"""How far above the tolerance the unfused baseline's own rounding may lie: bfloat16 gradients do."""


class WrongResult(RuntimeError):
    """A variant's result is too far from the definition; its speed is not worth reporting."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a case. ``run`` returns the tensors that are compared with the definition's.

    ``judge`` replaces the case's, and ``facts`` are further columns of the variant's line, such as its parameters. A
    ``dispensable`` one is somebody else's or not there everywhere: where its result is wrong or it fails, the others
    are timed without it.
    """

    name: str
    run: Callable[[], Sequence[Tensor]]
    checked: bool = True
    judge: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    dispensable: bool = False


@dataclass(frozen=True)
class Case:
    """A computation, its variants and what it costs at least.

    Args:
        name: such as ``attend forward``.
        setting: the sizes, such as ``B=1 N=16384 C=256 J=56 float32``.
        truth: the definition in float64.
        variants: the first is the baseline that ratios refer to.
        tolerance: largest error allowed, relative to the largest magnitude of each tensor, or twice the baseline's
            where that is more, as in half precision; the baseline itself is allowed :data:`BASELINE_MARGIN` times it.
        bytes_moved: least traffic of the fused form, in bytes.
        operations: arithmetic of the fused form, multiply-adds counted twice.
        judge: from a variant's results to what is compared with the truth, where they are not the same; not timed.
        images: that one run works through, where a rate is wanted.
    """

    name: str
    setting: str
    truth: Callable[[], Sequence[Tensor]]
    variants: Sequence[Variant]
    tolerance: float
    bytes_moved: int = 0
    operations: int = 0
    judge: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list
    images: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    case: str
    setting: str
    variant: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    speedup: float
    error: float | None
    peak_extra_mb: float | None = None
    copy_bandwidth_percent: float | None = None
    matrix_rate_percent: float | None = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Limits:
    """The machine's measured limits, that percentages refer to."""

    copy_bandwidth: float
    matrix_rate: float


@dataclass
class Report:
    machine: dict[str, object]
    rows: list[Row] = field(default_factory=list)


def run_case(case: Case, device: str, limits: Limits, repeats: int, progress: Progress | None = None) -> list[Row]:
    """Check and time every variant of a case; :func:`run_cases` also weighs them.

    Raises:
        WrongResult: a variant differs from the definition by more than it may. A dispensable one is left out instead,
            as where it fails, and the baseline's row says so.
    """
    truth = [t.double() for t in case.truth()]
    baseline, *others = case.variants
    limit = case.tolerance * BASELINE_MARGIN
    errors = {baseline.name: _error(baseline, truth, case, limit) if baseline.checked else None}
    limit = max(case.tolerance, 2 * (errors[baseline.name] or 0.0))
    variants, wrong, failed = [baseline], [], []
    for variant in others:
        try:
            errors[variant.name] = _error(variant, truth, case, limit) if variant.checked else None
            variants.append(variant)
        except WrongResult:
            if not variant.dispensable:
                raise
            wrong.append(variant.name)
        except Exception as error:  # a compiler's, of memory, or of a back end that cannot serve the call
            if not variant.dispensable:
                raise
            failed.append(f"{variant.name} ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    left_out = {"wrong, not timed": ", ".join(wrong), "failed, not timed": ", ".join(failed)}
    variants[0] = replace(baseline, facts={**baseline.facts, **{key: text for key, text in left_out.items() if text}})
    times: dict[str, list[float]] = {v.name: [] for v in variants}
    task = progress.add_task(f"{case.name}, {case.setting}", total=repeats) if progress else None
    for repeat in range(repeats + 2):
        for variant in variants:
            elapsed = _time(variant.run, device)
            if repeat >= 2:  # two rounds of warm-up
                times[variant.name].append(elapsed)
        if progress and task is not None and repeat >= 2:
            progress.advance(task)
    seconds = statistics.median(times[baseline.name])
    return [_row(case, v, times[v.name], seconds, errors[v.name], limits) for v in variants]


def _row(
    case: Case,
    variant: Variant,
    times: list[float],
    baseline: float,
    error: float | None,
    limits: Limits,
) -> Row:
    ordered = sorted(times)
    median = statistics.median(ordered)
    fused = variant.name.startswith("fused")
    rate = {"images/s": f"{case.images / median:.2f}"} if case.images else {}
    return Row(
        case=case.name,
        setting=case.setting,
        variant=variant.name,
        median_ms=1e3 * median,
        p20_ms=1e3 * ordered[int(0.2 * (len(ordered) - 1))],
        p80_ms=1e3 * ordered[int(0.8 * (len(ordered) - 1))],
        speedup=baseline / median,
        error=error,
        copy_bandwidth_percent=100 * case.bytes_moved / median / limits.copy_bandwidth
        if fused and case.bytes_moved
        else None,
        matrix_rate_percent=100 * case.operations / median / limits.matrix_rate if fused and case.operations else None,
        facts={**variant.facts, **rate},
    )


def _error(variant: Variant, truth: Sequence[Tensor], case: Case, limit: float) -> float:
    results = (variant.judge or case.judge)(variant.run())
    if len(results) != len(truth):
        raise WrongResult(f"{case.name}, {variant.name}: {len(results)} results where the definition has {len(truth)}")
    worst = 0.0
    for result, expected in zip(results, truth, strict=True):
        error = (result.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        worst = max(worst, error.item() if torch.isfinite(error) else float("inf"))
    if worst > limit:
        raise WrongResult(f"{case.name}, {variant.name}: error {worst:.1e} against the definition exceeds {limit:.0e}")
    return worst


def _time(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        _empty_cache()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@functools.cache
def _flushing() -> Tensor:
    return torch.empty(2 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")


def _empty_cache() -> None:
    """Leave nothing of the last run in the GPU's L2 cache; while it is overwritten, the next launches queue up."""
    _flushing().zero_()


def run_cases(cases: Sequence[Case], device: str, limits: Limits, repeats: int, console: Console) -> list[Row]:
    """All cases with a progress bar: first every time, then every peak of memory.

    Reading the peak makes the C library hand large blocks back at once, which would slow everything timed after it.
    """
    rows: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        for case in cases:
            rows += run_case(case, device, limits, repeats, progress)
        runs = {(case.name, case.setting, v.name): v.run for case in cases for v in case.variants}
        peaks = [peak_extra(runs[row.case, row.setting, row.variant], device) for row in rows]
    weighed = zip(rows, peaks, strict=True)
    return [replace(row, peak_extra_mb=None if peak is None else peak / 2**20) for row, peak in weighed]
