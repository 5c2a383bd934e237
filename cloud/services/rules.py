"""What a candidate made of rules decides, in words: its artifact from the registry, read and written out."""

from __future__ import annotations

import re
from collections.abc import Callable

from cloud.rules_text import describe_rules
from cloud.store import Store
from edgeloop.errors import RejectedError
from edgeloop.rules import decode
from edgeloop.v1 import control_service_pb2 as pb

_DIGEST_START = re.compile(r"[0-9a-f]{6,64}", re.ASCII)


def describe_candidate(
    store: Store, digest: str, *, read_blob: Callable[[str], bytes]
) -> pb.ExplainRulesResponse:
    """The rules of the candidate whose digest begins so.

    Raises ``RejectedError`` when none or several do, or when it is a network.
    """
    if not _DIGEST_START.fullmatch(digest):
        raise RejectedError(
            f"digest is {digest[:80]!r}: give at least its first 6 hex digits", code="field-invalid"
        )
    every = store.candidates()
    found = {candidate.digest: candidate for candidate in every if candidate.digest.startswith(digest)}
    ruled = sorted({candidate.digest[:12] for candidate in every if candidate.spec.rules is not None})
    if not found:
        raise RejectedError(
            f"no candidate {digest!r}: made of rules are {', '.join(ruled[:20]) or 'none yet'}",
            code="candidate-unknown",
        )
    if len(found) > 1:
        raise RejectedError(
            f"candidate {digest!r} fits {len(found)}: give more digits", code="name-ambiguous"
        )
    (candidate,) = found.values()
    if candidate.spec.rules is None:
        raise RejectedError(
            f"candidate {candidate.digest[:12]} is a network, which no rules describe: made of rules are "
            f"{', '.join(ruled[:20]) or 'none yet'}",
            code="not-rules",
        )
    model = decode(read_blob(candidate.digest))
    return pb.ExplainRulesResponse(
        digest=candidate.digest,
        kind=model.kind.value,
        accuracy=candidate.metrics.accuracy,
        fidelity=candidate.metrics.fidelity or 0.0,
        lines=describe_rules(model),
    )
