"""Scales that keep a model in the range of a format: chosen from recorded ranges, and checked on cases not seen."""
