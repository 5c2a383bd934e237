"""Decisions as functions of values. Standard library only; no I/O; no clock is read here."""
