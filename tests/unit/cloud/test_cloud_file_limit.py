"""A shell's limit of open files does not decide how many devices can connect."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, resource, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from cloud.serve import allow_many_sessions
for soft, hard in ((256, 8192), (256, 512)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(allow_many_sessions(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_as_many_files_may_be_open_as_the_machine_lets_us_and_few_are_told() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, warning, second = done.stdout.splitlines()
    assert first == "8192 8192"
    assert "512 files open" in warning
    assert second == "512 512"
