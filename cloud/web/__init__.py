"""A page for people: the fleet, read-only."""
