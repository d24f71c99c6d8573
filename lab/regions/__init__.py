"""Linear regions of piecewise affine networks on a plane, exactly; can be copied as a folder.

It needs `utils.py`, torch and numpy beside it, and nothing else of this project:

    regions = partition(network, plane_through(x[:3]), square((0, 0), 2.0))

What can be looked at around given points is in `windows.py`.
"""

from .distances import radii
from .found import Regions
from .geometry import Plane, SliceError, plane, plane_through, square
from .layers import Residual
from .search import partition

__all__ = [
    "Plane",
    "Regions",
    "Residual",
    "SliceError",
    "partition",
    "plane",
    "plane_through",
    "radii",
    "square",
]
