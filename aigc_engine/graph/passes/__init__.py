"""Passes over a captured graph: each makes it smaller and means the same."""
