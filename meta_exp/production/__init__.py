"""Finished runs at work on new tasks."""
