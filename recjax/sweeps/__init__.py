"""Sweeps: many runs of one config file that differ in a few keys and in their seeds."""
