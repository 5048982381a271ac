"""From masks to numbers: predictions, protocols, metrics, intervals, slices, records. Needs no torch."""
