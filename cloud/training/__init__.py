"""Workloads made ready for torch: data, networks, teacher training. torch lives here and in compression."""
