"""edgeloop: what the cloud and its devices must agree on."""

__version__ = "0.1.0"
