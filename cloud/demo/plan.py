"""What a demonstration shows: which devices there are, what they start with, and how each profile ends.

An example folder holds ``workload.yaml``, ``fleet.yaml`` and ``demo.yaml``; this is the last of them.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cloud.document_problems import path_text, problems_of
from cloud.documents import load_documents
from cloud.resources import FleetDocument, Name, WorkloadDocument
from edgeloop.errors import ConfigError


class Outcome(StrEnum):
    """What must have happened to a profile when the loop has closed."""

    COMPRESSED = "compressed"  # it missed its objective, got a smaller student, and meets it
    RELAXED = "relaxed"  # it had slack, got a more accurate student, and still meets it
    KEPT = "kept"  # it fitted, and was left alone


class DemoProfile(BaseModel):
    """The devices of one profile, and what is expected of it.

    ``width_ratios`` are built at the start; the first one is served first. The objective is
    ``objective_ratio`` times the p95 that the devices themselves measured while serving it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Name
    num_devices: Annotated[int, Field(ge=1, le=50)] = 2
    slowdown: Annotated[int, Field(ge=1, le=10_000, description="the graph runs this often for each request")]
    width_ratios: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    objective_ratio: Annotated[float, Field(gt=0, le=100)]
    outcome: Outcome

    @model_validator(mode="after")
    def _ratio_fits_the_outcome(self) -> DemoProfile:
        if (self.objective_ratio < 1) != (self.outcome is Outcome.COMPRESSED):
            raise ValueError(
                f"objective_ratio is {self.objective_ratio}: it must be under 1 for 'compressed', "
                "and over 1 otherwise"
            )
        return self


class DemoPlan(BaseModel):
    """``rate_hz`` requests a second reach each device; it reports a window each ``report_interval_s``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["Demo"]
    profiles: Annotated[list[DemoProfile], Field(min_length=1)]
    rate_hz: Annotated[float, Field(gt=0, le=1000)] = 20.0
    report_interval_s: Annotated[int, Field(ge=1, le=60)] = 2
    num_calibration_windows: Annotated[int, Field(ge=2, le=100)] = 5
    num_settled_windows: Annotated[int, Field(ge=2, le=100)] = 6
    timeout_s: Annotated[float, Field(gt=0)] = 900.0
    policy: Annotated[
        dict[str, float],
        Field(description="policy settings of the control plane, as 'edgeloop serve --policy'"),
    ] = {}


def load_example(folder: Path) -> tuple[WorkloadDocument, FleetDocument, DemoPlan]:
    """Read an example folder. Raises ``ConfigError`` naming the file and field that is wrong."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder: --workload takes one like examples/digits", code="demo-folder"
        )
    (workload,) = load_documents(folder / "workload.yaml")
    (fleet,) = load_documents(folder / "fleet.yaml")
    if not isinstance(workload, WorkloadDocument) or not isinstance(fleet, FleetDocument):
        raise ConfigError(f"{folder}: workload.yaml and fleet.yaml have each other's kind", code="demo-kind")
    path = folder / "demo.yaml"
    try:
        plan = DemoPlan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="demo-file") from None
    except ValidationError as error:
        lines = [f"{path}: {path_text(place) or 'document'}: {text}" for place, text in problems_of(error)]
        raise ConfigError("\n".join(lines), code="demo-field") from None
    unknown = {item.profile for item in plan.profiles} ^ {profile.name for profile in fleet.profiles}
    if unknown:
        raise ConfigError(
            f"{path}: profiles: {', '.join(sorted(unknown))} must stand in both demo.yaml and fleet.yaml",
            code="demo-field",
        )
    return workload, fleet, plan
