"""Which constraint keeps a profile from being served, and what the least relaxation of it would be.

Everything said here comes from students that were built and measured; nothing is extrapolated to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cloud.domain.candidates import Candidate
from cloud.domain.prediction import Prediction
from cloud.domain.profiles import Constraints

Predict = Callable[[Candidate], Prediction]


@dataclass(frozen=True, kw_only=True, slots=True)
class Infeasibility:
    """``binding`` names the constraints (fields of ``Constraints``) of which relaxing one would be enough.

    When relaxing one is not enough, it names all that no candidate meets together with the others.
    ``relaxations`` are whole suggestions for people, one a sentence part.
    """

    binding: tuple[str, ...]
    relaxations: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For the reason of a decision."""
        names = " and ".join(_NAMES[name] for name in self.binding) or "no student could be built"
        if not self.relaxations:
            return f"binding: {names}; no candidate that was evaluated comes near"
        return f"binding: {names}; nearest: {', or '.join(self.relaxations)}"


_NAMES = {
    "latency_p95_ms": "p95 objective",
    "artifact_bytes": "artifact size",
    "peak_rss_bytes": "peak memory",
    "min_accuracy": "accuracy floor",
}


def violations(candidate: Candidate, constraints: Constraints) -> tuple[str, ...]:
    """The constraints other than latency that a candidate does not meet."""
    metrics = candidate.metrics
    found = []
    if constraints.artifact_bytes is not None and metrics.artifact_bytes > constraints.artifact_bytes:
        found.append("artifact_bytes")
    if constraints.peak_rss_bytes is not None and metrics.peak_rss_bytes > constraints.peak_rss_bytes:
        found.append("peak_rss_bytes")
    if constraints.min_accuracy is not None and metrics.accuracy < constraints.min_accuracy:
        found.append("min_accuracy")
    return tuple(found)


def explain_infeasible(
    candidates: Iterable[Candidate], constraints: Constraints, predict: Predict
) -> Infeasibility:
    """Which constraint binds, and the nearest relaxations among these candidates."""
    missed = {
        candidate.digest: (candidate, _missed(candidate, constraints, predict))
        for candidate in candidates
        if not candidate.rejected_reason
    }
    ordered = [missed[digest] for digest in sorted(missed)]
    single = {names[0] for _, names in ordered if len(names) == 1}
    if single:
        binding = tuple(name for name in _NAMES if name in single)
        relaxations = [
            _relaxation(name, [c for c, names in ordered if names == (name,)], constraints, predict)
            for name in binding
        ]
        return Infeasibility(binding=binding, relaxations=tuple(relaxations))
    if not ordered:
        return Infeasibility(binding=(), relaxations=())
    # None is one relaxation away: take those that are fewest away, and of these the most accurate.
    fewest = min(len(names) for _, names in ordered)
    candidate, names = max(
        (entry for entry in ordered if len(entry[1]) == fewest),
        key=lambda entry: (entry[0].metrics.accuracy, entry[0].digest),
    )
    text = ", ".join(_value(name, candidate, predict) for name in names)
    return Infeasibility(binding=names, relaxations=(text,) if names else ())


def _missed(candidate: Candidate, constraints: Constraints, predict: Predict) -> tuple[str, ...]:
    limit_ms = constraints.latency_p95_ms
    too_slow = limit_ms is not None and predict(candidate).upper_p95_ms > limit_ms
    return (*(("latency_p95_ms",) if too_slow else ()), *violations(candidate, constraints))


def _relaxation(name: str, candidates: list[Candidate], constraints: Constraints, predict: Predict) -> str:
    """Relax only this one, by as little as possible."""

    def need(candidate: Candidate) -> tuple[float, str]:
        metrics = candidate.metrics
        amounts = {
            "latency_p95_ms": predict(candidate).upper_p95_ms,
            "artifact_bytes": float(metrics.artifact_bytes),
            "peak_rss_bytes": float(metrics.peak_rss_bytes),
            "min_accuracy": -metrics.accuracy,
        }
        return amounts[name], candidate.digest

    best = min(candidates, key=need)
    relaxed = _value(name, best, predict)
    if name == "min_accuracy" and constraints.latency_p95_ms is not None:
        return f"{relaxed} at {constraints.latency_p95_ms:g} ms"
    if constraints.min_accuracy is not None and name != "min_accuracy":
        return f"{relaxed} at floor {constraints.min_accuracy:g}"
    return relaxed


def _value(name: str, candidate: Candidate, predict: Predict) -> str:
    metrics = candidate.metrics
    if name == "latency_p95_ms":
        return f"p95 {predict(candidate).upper_p95_ms:.3g} ms"
    if name == "artifact_bytes":
        return f"{metrics.artifact_bytes} artifact bytes"
    if name == "peak_rss_bytes":
        return f"{metrics.peak_rss_bytes} bytes of memory"
    # Down, never up: the suggested floor must be one that the candidate meets.
    return f"floor {int(metrics.accuracy * 1000) / 1000:g}"
