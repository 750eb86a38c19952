"""On import: ``reference`` must lie beside ``backends``.

A folder or file ``reference`` in the current folder, or on PYTHONPATH, would otherwise be imported in its place.
"""

from importlib.util import find_spec
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1] / "reference"
_found = find_spec("reference")
_places = list((_found and _found.submodule_search_locations) or [(_found and _found.origin) or "nothing"])
if _OURS not in [Path(place).resolve() for place in _places]:
    raise ImportError(
        f"package reference: got {_places[0]}, while backends lies in {_OURS.parent}; allowed: {_OURS}, of "
        "the same installation. Try: rename the other, start from another folder, or install one of the two alone"
    )
