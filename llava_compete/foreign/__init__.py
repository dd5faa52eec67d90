"""Checkpoints in other projects' layouts: read into ours, and written from it."""
