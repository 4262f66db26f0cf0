"""Mapping with a trained model: scenes of any size by overlapping windows, label rasters, pictures."""
