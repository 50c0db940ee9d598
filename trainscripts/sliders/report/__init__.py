"""A slider's report card: what its pictures show at each multiplier, measured against the user's folders."""
