"""Compute on Ray: the only package that imports it.

``RayCompute`` is all that the rest of the control plane sees. Importing this package does not import Ray,
which takes time and reads its environment once: ``RayCompute.start`` does, after that environment is set.
"""

from cloud.jobs.compute import RayCompute

__all__ = ["RayCompute"]
