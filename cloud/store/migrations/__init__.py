"""Alembic's environment and its versions. A version is never changed once it was released."""
