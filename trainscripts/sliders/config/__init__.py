"""Flags and YAML become one frozen `Settings`. Imports no torch, so `--help` and a mistyped key answer at once."""
