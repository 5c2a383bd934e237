"""The demonstration: the whole loop on one machine, through the same interfaces that people use.

It starts a control plane and agents as processes of their own, talks to them as the control script does, and
judges the outcome by what the agents measured.
"""
