"""A latency histogram of fixed size that can be merged across windows, devices and days.

Logarithmic buckets after Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees" (PVLDB 12, 2019), with the range fixed, so that no collapsing is needed and two
sketches always have the same buckets.

Rules kept here:

- Bucket i holds values in (gamma^(i-1), gamma^i] microseconds, gamma = (1 + accuracy) / (1 - accuracy).
- ``quantile(q)`` is within 1 % of the order statistic of rank floor(q * (count - 1)), for values between
  1 microsecond and ``MAX_BUCKET_MS``. Below and above, the first and last bucket answer with what is known:
  never under ``min_ms``, never over ``max_ms``.
- ``merge`` is associative and commutative, and the empty sketch is its identity: the sum is kept in whole
  nanoseconds, because adding floats is neither.
- What came over a wire is checked in full before it becomes a sketch (``RejectedError``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from google.protobuf.message import DecodeError

from edgeloop.errors import RejectedError
from edgeloop.v1 import telemetry_pb2

FORMAT_VERSION: Final = 1
ACCURACY: Final = 0.01
GAMMA: Final = (1 + ACCURACY) / (1 - ACCURACY)
LAST_INDEX: Final = 1050
NUM_BUCKETS: Final = LAST_INDEX + 1
#: Upper end of the last bucket, about 22 minutes. Higher values count in it.
MAX_BUCKET_MS: Final = GAMMA**LAST_INDEX / 1000
#: The highest value that a sketch remembers as its maximum, about 11 days.
MAX_VALUE_MS: Final = 1e9
#: More than one wire message may claim: 10 kHz for a day.
MAX_COUNT: Final = 10**9
MAX_WIRE_BYTES: Final = 16 * 1024

_PER_LOG: Final = 1 / math.log(GAMMA)
_OFFSET: Final = math.log(1000) * _PER_LOG  # from milliseconds to microseconds
_MIN_MS: Final = 0.001
_NS_PER_MS: Final = 1_000_000
# The middle that is within ACCURACY of both ends of its bucket.
_MIDDLES_MS: Final = tuple(2 * GAMMA**i / (GAMMA + 1) / 1000 for i in range(NUM_BUCKETS))
_SLOP: Final = 1e-9  # two processors may round a logarithm to neighbouring buckets


def bucket_index(ms: float) -> int:
    """The bucket of a value."""
    if ms <= _MIN_MS:
        return 0
    return min(LAST_INDEX, math.ceil(math.log(ms) * _PER_LOG + _OFFSET))


def bucket_bounds_ms(index: int) -> tuple[float, float]:
    """Lower (exclusive) and upper (inclusive) end of a bucket, for plots."""
    return GAMMA ** (index - 1) / 1000, GAMMA**index / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencySketch:
    """An immutable histogram. Build one with ``of``, ``SketchBuilder`` or ``from_proto``."""

    indexes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    count: int = 0
    sum_ns: int = 0
    min_ms: float = 0.0
    max_ms: float = 0.0

    @classmethod
    def empty(cls) -> Self:
        return cls()

    @classmethod
    def of(cls, values_ms: Iterable[float]) -> LatencySketch:
        """The sketch of these values. Raises ``ValueError`` for one that is negative or not a number."""
        builder = SketchBuilder()
        for ms in values_ms:
            builder.add(ms)
        return builder.build()

    @property
    def sum_ms(self) -> float:
        return self.sum_ns / _NS_PER_MS

    @property
    def mean_ms(self) -> float:
        """0 when empty."""
        return self.sum_ms / self.count if self.count else 0.0

    @property
    def buckets(self) -> Mapping[int, int]:
        """Count by bucket index, ascending, without the empty ones."""
        return MappingProxyType(dict(zip(self.indexes, self.counts, strict=True)))

    def weights(self) -> Iterator[tuple[float, int]]:
        """(value in ms, count) of each bucket, ascending: what resampling and plots draw from."""
        for index, count in zip(self.indexes, self.counts, strict=True):
            yield self._middle_ms(index), count

    def quantile(self, q: float) -> float:
        """The q-quantile in ms. Raises ``ValueError`` when the sketch is empty or q is outside 0..1."""
        if not 0 <= q <= 1:
            raise ValueError(f"q is {q}: give a number from 0 to 1")
        if not self.count:
            raise ValueError("an empty sketch has no quantiles: look at count first")
        rank = math.floor(q * (self.count - 1))
        if rank <= 0:
            return self.min_ms
        if rank >= self.count - 1:
            return self.max_ms
        for index, count in zip(self.indexes, self.counts, strict=True):
            rank -= count
            if rank < 0:
                return self._middle_ms(index)
        raise AssertionError("count is the sum of counts")

    def merge(self, other: LatencySketch) -> LatencySketch:
        """The sketch of both sets of values."""
        if not other.count:
            return self
        if not self.count:
            return other
        merged = dict(zip(self.indexes, self.counts, strict=True))
        known = merged.get
        for index, count in zip(other.indexes, other.counts, strict=True):
            merged[index] = known(index, 0) + count
        indexes = tuple(sorted(merged))
        return LatencySketch(
            indexes=indexes,
            counts=tuple(map(merged.__getitem__, indexes)),
            count=self.count + other.count,
            sum_ns=self.sum_ns + other.sum_ns,
            min_ms=min(self.min_ms, other.min_ms),
            max_ms=max(self.max_ms, other.max_ms),
        )

    def to_proto(self) -> telemetry_pb2.LatencySketch:
        return telemetry_pb2.LatencySketch(
            format_version=FORMAT_VERSION,
            indexes=self.indexes,
            counts=self.counts,
            sum_ms=self.sum_ms,
            min_ms=self.min_ms,
            max_ms=self.max_ms,
        )

    def to_bytes(self) -> bytes:
        """The serialised message; the same sketch gives the same bytes."""
        return self.to_proto().SerializeToString(deterministic=True)

    @classmethod
    def from_bytes(cls, raw: bytes) -> LatencySketch:
        """Read what ``to_bytes`` gave. Raises ``RejectedError`` for anything else."""
        if len(raw) > MAX_WIRE_BYTES:
            raise _field("size", f"{len(raw)} bytes", f"at most {MAX_WIRE_BYTES}")
        try:
            message = telemetry_pb2.LatencySketch.FromString(raw)
        except DecodeError:
            raise RejectedError("the sketch is no protobuf message: drop it", code="sketch-field") from None
        return cls.from_proto(message)

    @classmethod
    def from_proto(cls, message: telemetry_pb2.LatencySketch) -> LatencySketch:
        """Check a message and read it. Raises ``RejectedError`` ("sketch-version" or "sketch-field")."""
        if message.format_version != FORMAT_VERSION:
            raise RejectedError(
                f"sketch format_version {message.format_version} is not known here: "
                f"this side reads {FORMAT_VERSION}; update the older side",
                code="sketch-version",
            )
        if len(message.indexes) > NUM_BUCKETS or len(message.indexes) != len(message.counts):
            raise _field(
                "indexes", f"{len(message.indexes)} beside {len(message.counts)} counts", "as many as counts"
            )
        indexes, counts = tuple(message.indexes), tuple(message.counts)
        sum_ms, min_ms, max_ms = message.sum_ms, message.min_ms, message.max_ms
        if not indexes:
            if sum_ms or min_ms or max_ms:
                raise _field("sum_ms, min_ms and max_ms", "set", "0 in an empty sketch")
            return cls()
        if indexes[-1] > LAST_INDEX or sorted(set(indexes)) != list(indexes):
            raise _field("indexes", "not strictly increasing within range", f"0 to {LAST_INDEX}")
        count = sum(counts)
        if 0 in counts or count > MAX_COUNT:
            raise _field("counts", f"{count} in all", f"each at least 1, at most {MAX_COUNT} in all")
        if not 0 <= min_ms <= max_ms <= MAX_VALUE_MS:  # also false for NaN
            raise _field(
                "min_ms and max_ms", f"{min_ms} and {max_ms}", f"0 <= min <= max <= {MAX_VALUE_MS:g}"
            )
        for name, value, index in (("min_ms", min_ms, indexes[0]), ("max_ms", max_ms, indexes[-1])):
            if not bucket_index(value * (1 - _SLOP)) <= index <= bucket_index(value * (1 + _SLOP)):
                raise _field(name, f"{value} beside bucket {index}", "a value of that bucket")
        # Each value was rounded by at most half a nanosecond, and the sum once more.
        slack_ms = 1e-6 + count * max_ms * _SLOP
        if not min_ms * count - slack_ms <= sum_ms <= max_ms * count + slack_ms:
            raise _field("sum_ms", f"{sum_ms}", f"between {min_ms} and {max_ms} times {count}")
        return cls(
            indexes=indexes,
            counts=counts,
            count=count,
            sum_ns=round(sum_ms * _NS_PER_MS),
            min_ms=min_ms,
            max_ms=max_ms,
        )

    def _middle_ms(self, index: int) -> float:
        return min(self.max_ms, max(self.min_ms, _MIDDLES_MS[index]))


class SketchBuilder:
    """Counts values one at a time, under a microsecond each. Not shared between threads without a lock."""

    __slots__ = ("_count", "_counts", "_max_ms", "_min_ms", "_sum_ms")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next window begins."""
        self._counts: dict[int, int] = {}
        self._count = 0
        self._sum_ms = 0.0
        self._min_ms = math.inf
        self._max_ms = 0.0

    @property
    def count(self) -> int:
        return self._count

    def add(self, ms: float) -> None:
        """Count one value. Raises ``ValueError`` when it is negative or not a number."""
        if not 0.0 <= ms <= MAX_VALUE_MS:
            if not ms > MAX_VALUE_MS:
                raise ValueError(f"{ms} is no latency: give milliseconds, 0 or more")
            ms = MAX_VALUE_MS
        if ms <= _MIN_MS:
            index = 0
        else:
            index = math.ceil(math.log(ms) * _PER_LOG + _OFFSET)
            if index > LAST_INDEX:
                index = LAST_INDEX
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self._count += 1
        self._sum_ms += ms
        if ms < self._min_ms:
            self._min_ms = ms
        if ms > self._max_ms:
            self._max_ms = ms

    def build(self) -> LatencySketch:
        """What was counted so far."""
        if not self._count:
            return LatencySketch()
        indexes = tuple(sorted(self._counts))
        return LatencySketch(
            indexes=indexes,
            counts=tuple(self._counts[index] for index in indexes),
            count=self._count,
            sum_ns=round(self._sum_ms * _NS_PER_MS),
            min_ms=self._min_ms,
            max_ms=self._max_ms,
        )


def _field(field: str, found: str, wanted: str) -> RejectedError:
    return RejectedError(f"sketch {field}: {found}, wanted {wanted}; drop this report", code="sketch-field")
