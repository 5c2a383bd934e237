"""The control script, ``edgeloop``: its modules parse, call ControlService and print, and decide nothing."""

from cloud.cli.app import main

__all__ = ["main"]
