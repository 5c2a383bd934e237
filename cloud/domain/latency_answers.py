"""What is tried beside narrower students where latency binds, and in which order.

Rules: networks of the workload's own come first, whose graph has other calls; then a student without
shortcuts, which keeps all layers that learn; then those of fewer layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cloud.domain.candidates import Candidate
from cloud.domain.chains import chain_students
from cloud.domain.methods import Proposal, shorter_students
from cloud.domain.own_networks import own_students
from cloud.domain.profiles import Constraints
from cloud.domain.workloads import SearchBudget


def latency_answers(
    built: Sequence[Candidate],
    *,
    constraints: Constraints,
    budget: SearchBudget,
    num_branches: int,
    num_shortcuts: int,
    exclude: Collection[str] = (),
) -> tuple[Proposal, ...]:
    """Best first; nothing where latency does not bind.

    ``num_branches`` is as in ``shorter_students``, ``num_shortcuts`` as in ``chain_students``; ``exclude``
    are digests of specs that exist or failed.
    """
    return (
        *own_students(built, constraints=constraints, budget=budget, exclude=exclude),
        *chain_students(
            built,
            constraints=constraints,
            methods=budget.methods,
            num_epochs=budget.num_epochs,
            num_shortcuts=num_shortcuts,
            exclude=exclude,
        ),
        *shorter_students(
            built,
            constraints=constraints,
            methods=budget.methods,
            num_epochs=budget.num_epochs,
            num_branches=num_branches,
            exclude=exclude,
        ),
    )
