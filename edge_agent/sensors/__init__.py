"""Sensors wired to the model by configuration alone: topics of a broker, and folders."""
