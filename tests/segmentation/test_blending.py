import numpy as np
import pytest

from stedm.segmentation.blending import Blender, TileGrid, window


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(16, 0), (16, 4), (16, 8), (15, 7), (8, 1)])
def test_the_weights_of_overlapping_tiles_add_up_to_one(tile_px, overlap_px):
    stride, weights = tile_px - overlap_px, window(tile_px, overlap_px)
    total = np.zeros((4 * tile_px, 4 * tile_px))
    for y in range(0, 3 * tile_px + 1, stride):
        for x in range(0, 3 * tile_px + 1, stride):
            part = total[y : y + tile_px, x : x + tile_px]
            part += weights[: part.shape[0], : part.shape[1]]
    assert np.allclose(total[tile_px : 2 * tile_px, tile_px : 2 * tile_px], 1, atol=1e-6)
    assert weights.min() > 0
    centre = weights[tile_px // 2]
    assert (np.diff(centre[: tile_px // 2]) >= 0).all()


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 16), (28, 40), (100, 61)])
@pytest.mark.parametrize("overlap_px", [0, 4, 8])
def test_the_grid_covers_the_map_with_no_tile_too_many(size, overlap_px):
    grid = TileGrid(*size, 16, overlap_px)
    corners = grid.corners()
    assert len(corners) == grid.rows * grid.columns
    for axis in (0, 1):
        assert corners[:, axis].max() + 16 >= size[axis]
        # Without its last row or column the map would not be covered.
        assert corners[:, axis].max() == 0 or corners[:, axis].max() - grid.stride_px + 16 < size[axis]


def _blended(grid: TileGrid, tiles) -> np.ndarray:
    return np.concatenate(list(Blender(grid, 2).bands(tiles)))


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(16, 0), (16, 4), (16, 8), (12, 3)])
def test_a_map_cut_into_tiles_comes_out_as_it_was(tile_px, overlap_px):
    whole = np.random.default_rng(0).random((2, 61, 50)).astype(np.float32)
    grid = TileGrid(50, 61, tile_px, overlap_px)
    padded = np.pad(whole, ((0, 0), (0, 2 * tile_px), (0, 2 * tile_px)))
    tiles = [padded[:, y : y + tile_px, x : x + tile_px].copy() for x, y in grid.corners()]
    assert np.array_equal(_blended(grid, tiles), whole.argmax(axis=0))


def test_what_is_nearer_to_the_centre_of_its_tile_counts_more():
    sure, unsure = np.zeros((2, 16, 16), np.float32), np.zeros((2, 16, 16), np.float32)
    sure[1], unsure[0] = 1, 1
    found = _blended(TileGrid(24, 16, 16, 8), [sure, unsure])
    assert (found == (np.arange(24) < 12)).all()  # they meet in the middle of the overlap
    found = _blended(TileGrid(24, 16, 16, 8), [None, sure])
    assert (found == (np.arange(24) >= 8)).all()  # where one tile is missing the other decides alone
    found = _blended(TileGrid(16, 24, 16, 8), [sure, unsure])
    assert (found == (np.arange(24) < 12)[:, None]).all()


def test_what_is_kept_does_not_grow_with_the_height():
    tile = np.ones((2, 16, 16), np.float32)
    strips = []
    for height in (64, 640):
        grid = TileGrid(40, height, 16, 4)
        blender = Blender(grid, 2)
        given = 0

        def tiles(n=grid.rows * grid.columns):
            nonlocal given
            for _ in range(n):
                given += 1
                yield tile

        for number, band in enumerate(blender.bands(tiles()), start=1):
            assert band.shape[0] <= 16
            assert given == number * grid.columns  # no tile is taken before its row
        strips.append(blender.strip.shape)
    assert strips[0] == strips[1] == (2, 4, 40)
