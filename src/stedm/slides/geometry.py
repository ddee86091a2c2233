"""The libraries of geometry, which only slides need."""

from typing import Any

from stedm.errors import StedmError


def geometry_libraries() -> tuple[Any, Any]:
    """(rasterio, shapely), imported late because only slides need them."""
    try:
        import rasterio
        import rasterio.errors
        import rasterio.features
        import shapely
    except ImportError as error:
        raise StedmError(f'annotations of slides need {error.name}: pip install "stedm[slides]"') from error
    return rasterio, shapely


def tile_shape(tile_px: int | tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a side or of both."""
    rows, columns = tile_px if isinstance(tile_px, tuple) else (tile_px, tile_px)
    return int(rows), int(columns)
