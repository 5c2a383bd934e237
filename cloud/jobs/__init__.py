"""Compute on Ray: the only package that imports it.

The rest of the control plane sees ``cloud.jobs.remote.RemoteCompute`` alone, which imports no Ray: a process
of its own does (``cloud.jobs.driver``), and the two talk through ``cloud.jobs.link``.
"""
