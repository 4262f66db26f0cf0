"""What is made of a finished map: rasters, polygons and pictures."""
