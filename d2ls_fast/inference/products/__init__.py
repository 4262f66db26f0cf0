"""The files made from a map, in one pass over its rows: rasters, polygons, overlay.

Memory is bounded by the scene's width, never by its height, but for polygons that are still open.
"""

from d2ls_fast.inference.products.rows import NODATA, MapRows
from d2ls_fast.inference.products.write import Products, Wanted, write_products

__all__ = ["NODATA", "MapRows", "Products", "Wanted", "write_products"]
