"""The agent on a gateway: fetches, checks and serves what it is told to, and reports what it measures."""
