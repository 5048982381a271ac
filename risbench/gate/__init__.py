"""The regression gate: today's code against recorded numbers."""
