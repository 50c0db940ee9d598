"""The plan of a run, its loop, and what the loop is made of."""
