"""The cloud and the agent that most tests of real agents begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_harness import AgentProcess, Cloud


@pytest.fixture(autouse=True)
def _no_agent_is_left() -> Iterator[None]:
    """What a test started and a failure kept it from ending, ends with it; what a module shares goes on."""
    before = set(AgentProcess.started)
    yield
    for agent in AgentProcess.started - before:
        AgentProcess.started.discard(agent)
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()


@pytest.fixture
def cloud(mosquitto) -> Iterator[Cloud]:
    cloud = Cloud(mosquitto.host, mosquitto.port)
    yield cloud
    cloud.close()


@pytest.fixture
def agent(cloud: Cloud, tmp_path: Path) -> Iterator[AgentProcess]:
    """Not started yet; killed at the end, if nothing else ended it."""
    agent = AgentProcess(cloud, tmp_path)
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.kill()
