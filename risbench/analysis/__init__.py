"""Two runs or more: differences, and where they come from."""
