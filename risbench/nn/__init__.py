"""Blocks that two methods or more share."""
