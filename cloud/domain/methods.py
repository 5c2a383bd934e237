"""Which methods beyond width and road are worth a trial, and why: the search asks for them by itself.

Rules kept here:

- What binds decides. Where artifact bytes bind, the most accurate student that is too large gets fewer bits
  or zeros before a narrower one replaces it: the mildest that is predicted to be enough, then, should that
  not have been, a stronger one. Where nothing binds, nothing is rounded.
- Training for int8 follows only where int8 was measured to lose more than the workload's tolerance.
- Rules compete where inputs are few, and where an accuracy floor says how little is too little; without
  a floor only when the workload names them.
- The same students lead to the same proposals, and each says why it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from cloud.domain.candidates import Candidate
from cloud.domain.feasibility import violations
from cloud.domain.idle_fields import without_idle
from cloud.domain.profiles import Constraints
from cloud.domain.quantisation import Estimator, Granularity, QuantisationSpec, Scheme
from cloud.domain.rules import RuleKind, RuleSpec
from cloud.domain.sparsity import SparsitySpec
from cloud.domain.specs import CompressionSpec, Precision, Road, count_branches_kept


class Method(StrEnum):
    """What a workload's ``search.methods`` may name."""

    QUANTISATION = "quantisation"  # int8 where fp32 won, fewer than 8 bits, codebooks, powers of two
    SPARSITY = "sparsity"  # zero weights
    QAT = "qat"  # training for int8
    RULES = "rules"  # a tree, or boosted trees
    DEPTH = "depth"  # fewer layers
    SHORTCUTS = "shortcuts"  # wider, without shortcuts


SIZE_METHODS: Final = frozenset({Method.QUANTISATION, Method.SPARSITY})
#: More values than these in an input are too many for rules of some dozen tests.
MAX_RULE_INPUTS: Final = 512
#: Bytes that a weight takes in a packed int8 artifact, and in a packed fp32 one.
_INT8_BYTES, _FP32_BYTES = 0.85, 3.6
_FLOAT_BYTES = 4
#: What is predicted to be this much over the limit may still meet it.
_HOPED = 1.1
#: So many trials leave room for a student without shortcuts and for one of fewer layers.
_MANY_TRIALS = 6
_PER_RUNG = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A spec worth a trial; ``reason`` is for people."""

    spec: CompressionSpec
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lever:
    """``ratio`` is what it leaves of the weights' bytes in a packed int8 artifact, as measured."""

    name: str
    ratio: float
    needs: frozenset[Method]
    quantisation: QuantisationSpec | None = None
    sparsity: float = 0.0


def _few(bits: int, scheme: Scheme = Scheme.UNIFORM) -> QuantisationSpec:
    whole = Granularity.PER_TENSOR if scheme is Scheme.CODEBOOK else Granularity.PER_CHANNEL
    return QuantisationSpec(
        scheme=scheme, bits=bits, granularity=whole, estimator=Estimator.MSE, qat_epochs=0
    )


_BITS, _ZEROS = frozenset({Method.QUANTISATION}), frozenset({Method.SPARSITY})
#: Mildest first.
_LADDER: Final = (
    _Lever(name="int8", ratio=1.0, needs=_BITS),
    _Lever(
        name="power-of-two scales, 4 bits", ratio=0.58, needs=_BITS, quantisation=_few(4, Scheme.POWER_OF_TWO)
    ),
    _Lever(name="a codebook of 3 bits", ratio=0.48, needs=_BITS, quantisation=_few(3, Scheme.CODEBOOK)),
    _Lever(name="75 % zeros", ratio=0.36, needs=_ZEROS, sparsity=0.75),
    _Lever(
        name="4 bits and 75 % zeros", ratio=0.25, needs=_BITS | _ZEROS, quantisation=_few(4), sparsity=0.75
    ),
    _Lever(name="90 % zeros", ratio=0.19, needs=_ZEROS, sparsity=0.9),
    _Lever(
        name="4 bits and 90 % zeros", ratio=0.13, needs=_BITS | _ZEROS, quantisation=_few(4), sparsity=0.9
    ),
)


def allowed(methods: Sequence[Method] | None) -> frozenset[Method]:
    """What a workload's ``search.methods`` permits; None permits all."""
    return frozenset(Method if methods is None else methods)


def reserved_trials(
    constraints: Constraints,
    methods: Sequence[Method] | None,
    max_trials: int,
    *,
    num_branches: int = 0,
    num_shortcuts: int = 0,
) -> int:
    """How many of a search's trials its first rung leaves, since a constraint may come to bind."""
    permitted = allowed(methods)
    kept = 0
    if constraints.artifact_bytes is not None and permitted & SIZE_METHODS:
        kept += max(1, max_trials // 2)
    if Method.RULES in permitted and (methods is not None or constraints.min_accuracy is not None):
        kept += max_trials >= 4
    if constraints.latency_p95_ms is not None:
        shapes = (Method.DEPTH in permitted and num_branches > 1) + (
            Method.SHORTCUTS in permitted and num_shortcuts > 0
        )
        kept += min(shapes, 1 + (max_trials >= _MANY_TRIALS))
    return min(kept, max_trials - 1)


def size_levers(
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    methods: Sequence[Method] | None,
    num_epochs: int,
    exclude: Iterable[str] = (),
) -> tuple[Proposal, ...]:
    """What makes the best of these students small enough; nothing where artifact bytes do not bind.

    ``num_epochs`` is what a student that had no training of its own gets for becoming sparse.
    """
    limit, permitted = constraints.artifact_bytes, allowed(methods)
    if limit is None or not permitted & SIZE_METHODS:
        return ()
    known = [c for c in built if not c.rejected_reason]
    rest = replace(constraints, artifact_bytes=None)
    fitting = max((c.metrics.accuracy for c in known if not violations(c, constraints)), default=-1.0)
    bases = sorted(
        (
            c
            for c in known
            if _is_plain(c.spec)
            and c.metrics.artifact_bytes > limit
            and c.metrics.accuracy > fitting
            and not violations(c, rest)
        ),
        key=lambda c: (-c.metrics.accuracy, c.metrics.artifact_bytes, c.digest),
    )
    taken = {c.spec.digest for c in known} | set(exclude)
    found: dict[str, Proposal] = {}
    for base in bases[:_PER_RUNG]:
        proposal = _mildest(base, limit, permitted, taken, num_epochs)
        if proposal is not None:
            found.setdefault(proposal.spec.digest, proposal)
    return tuple(found.values())


def shorter_students(
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    methods: Sequence[Method] | None,
    num_epochs: int,
    num_branches: int,
    exclude: Iterable[str] = (),
) -> tuple[Proposal, ...]:
    """The best of these students with fewer layers; nothing where latency does not bind.

    Latency is what was measured where they were built: devices are rarely faster, and for what they measure
    the controller asks (``search``). ``num_branches`` is how many branches the teacher has that may be left
    out. A student without training of its own gets ``num_epochs``: without some branches it must learn anew.
    """
    limit = constraints.latency_p95_ms
    if limit is None or Method.DEPTH not in allowed(methods):
        return ()
    known = [c for c in built if not c.rejected_reason and not violations(c, constraints)]
    fitting = max((c.metrics.accuracy for c in known if c.metrics.latency_p95_ms <= limit), default=-1.0)
    bases = sorted(
        (
            c
            for c in known
            if _is_plain(c.spec)
            and c.spec.network is None
            and c.metrics.latency_p95_ms > limit
            and c.metrics.accuracy > fitting
        ),
        key=lambda c: (-c.metrics.accuracy, c.metrics.latency_p95_ms, c.digest),
    )
    taken = {c.spec.digest for c in known} | set(exclude)
    found: dict[str, Proposal] = {}
    for base in bases[:_PER_RUNG]:
        spec = shorter(
            base.spec,
            latency_ratio=limit / base.metrics.latency_p95_ms,
            num_branches=num_branches,
            num_epochs=num_epochs,
        )
        if spec is not None and spec.digest not in taken:
            kept = count_branches_kept(num_branches, spec.depth_ratio or 1.0)
            reason = (
                f"latency binds: {base.digest[:12]} takes {base.metrics.latency_p95_ms:.3g} ms of at most "
                f"{limit:g} where it was built, and {kept} of {num_branches} branches make fewer calls of "
                "the same width"
            )
            found.setdefault(spec.digest, Proposal(spec=spec, reason=reason))
    return tuple(found.values())


def shorter(
    spec: CompressionSpec, *, latency_ratio: float, num_branches: int, num_epochs: int
) -> CompressionSpec | None:
    """``spec`` with fewer layers, for ``latency_ratio`` of its latency; None where none can leave.

    The mildest that could be enough: if all time went into branches, it would fall with their number. None of
    a student without shortcuts: whether any is left to leave out once branches left is not known here.
    """
    if spec.shortcuts is not None:
        return None
    epochs = spec.num_epochs or num_epochs
    now = count_branches_kept(num_branches, spec.depth_ratio or 1.0)
    if now < 2 or not epochs:
        return None
    kept = max(1, min(now - 1, math.floor(now * latency_ratio)))
    return without_idle(replace(spec, depth_ratio=round(kept / num_branches, 3), num_epochs=epochs))


def other_methods(
    built: Iterable[Candidate],
    *,
    constraints: Constraints,
    methods: Sequence[Method] | None,
    tolerance: float,
    num_inputs: int,
    exclude: Iterable[str] = (),
) -> tuple[Proposal, ...]:
    """Training for int8 of the best student that lost by it, and rules where they suit.

    ``num_inputs`` is how many values an input has, 0 where that is not known or rules cannot be had.
    """
    known, permitted = [c for c in built if not c.rejected_reason], allowed(methods)
    found = []
    lost = [c for c in known if _is_plain(c.spec) and (c.metrics.int8_loss or 0.0) > tolerance]
    if Method.QAT in permitted and lost:
        base = max(lost, key=lambda c: (c.metrics.accuracy, c.digest))
        spec = without_idle(
            replace(
                base.spec,
                precision=Precision.INT8,
                quantisation=QuantisationSpec(tuning_epochs=0, tolerance=tolerance),
            )
        )
        reason = (
            f"int8 lost {base.metrics.int8_loss:.4f} of {base.digest[:12]}'s accuracy, over the tolerance of "
            f"{tolerance:g}: the same student is trained for it"
        )
        found.append(Proposal(spec=spec, reason=reason))
    named = methods is not None or constraints.min_accuracy is not None
    if Method.RULES in permitted and named and 0 < num_inputs <= MAX_RULE_INPUTS:
        reason = f"inputs have {num_inputs} values: few enough for rules to compete"
        found += [Proposal(spec=spec, reason=reason) for spec in _RULES]
    taken = {c.spec.digest for c in known} | set(exclude)
    return tuple(proposal for proposal in found if proposal.spec.digest not in taken)


_RULES: Final = (
    # At the depth of a tree of single inputs nine points better, for a third more bytes (docs/rules.md).
    CompressionSpec(road=Road.RULES, rules=RuleSpec(num_terms=3)),
    CompressionSpec(road=Road.RULES, rules=RuleSpec(kind=RuleKind.BOOSTED, max_depth=3, max_leaves=8)),
)


def _is_plain(spec: CompressionSpec) -> bool:
    return spec.road is not Road.RULES and spec.quantisation is None and spec.sparsity is None


def _mildest(
    base: Candidate, limit: int, permitted: frozenset[Method], taken: set[str], num_epochs: int
) -> Proposal | None:
    """The first lever not tried yet that should be enough for ``base``."""
    metrics = base.metrics
    is_fp32 = base.precision is Precision.FP32
    weights = min(
        float(metrics.artifact_bytes), metrics.num_parameters * (_FP32_BYTES if is_fp32 else _INT8_BYTES)
    )
    fixed = metrics.artifact_bytes - weights
    if is_fp32:
        # Of a small network much is no weight: what its graph takes beside them stays as int8.
        whole = metrics.executable_bytes or metrics.artifact_bytes
        fixed = max(fixed, float(whole - _FLOAT_BYTES * metrics.num_parameters))
    int8 = metrics.num_parameters * _INT8_BYTES if is_fp32 else weights
    for lever in _LADDER:
        nothing = lever.quantisation is None and not lever.sparsity
        if not lever.needs <= permitted or (nothing and not is_fp32):
            continue
        predicted = fixed + int8 * lever.ratio
        spec = replace(
            base.spec,
            precision=Precision.INT8,
            # A cut is as it was cut: most of its weights made zero at once would leave nothing of it.
            num_epochs=(base.spec.num_epochs or num_epochs) if lever.sparsity else base.spec.num_epochs,
            quantisation=lever.quantisation,
            sparsity=SparsitySpec(ratio=lever.sparsity) if lever.sparsity else None,
        )
        spec = without_idle(spec)
        if predicted <= limit * _HOPED and spec.digest not in taken:
            reason = (
                f"artifact bytes bind: {base.digest[:12]} has {metrics.artifact_bytes} of at most {limit}, "
                f"and {lever.name} should bring it to about {predicted:.0f}"
            )
            return Proposal(spec=spec, reason=reason)
    return None
