"""The generated data set mini-gres: expressions for one object of mini's scenes, for several, and for none."""
