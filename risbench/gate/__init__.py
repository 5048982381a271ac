"""Gates: today's code against recorded numbers, and a method against its contract with the harness."""
