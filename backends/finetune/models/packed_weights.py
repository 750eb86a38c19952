"""Whether weights that a folder holds in 4 bits (bitsandbytes) are whole: nothing else checks it.

bitsandbytes takes the shape, the scales and the codes of a matrix from as many tensors, and reads past their ends where
they do not fit each other.
"""

import math
from typing import Any

from backends.weight_files import Entry


def packed_at_fault(shapes: dict[str, tuple[int, ...]], entries: dict[str, Entry]) -> dict[str, list[str]]:
    """By what is wrong with them, the tensors of files with packed weights that do not fit ``shapes``; from headers."""
    found: dict[str, list[str]] = {"missing": [], "of another shape": []}
    for name, shape in shapes.items():
        if name not in entries:
            found["missing"].append(name)
            continue
        stored, size = entries[name].shape, math.prod(shape)
        is_packed = entries[name].dtype == "U8"
        if is_packed:
            codes = f"{name}.absmax", f"{name}.quant_map"
            found["missing"] += [part for part in codes if part not in entries]
            if not any(key.startswith(f"{name}.quant_state.") for key in entries):
                found["missing"].append(f"{name}.quant_state")
        if math.prod(stored) != -(-size // 2) if is_packed else stored != shape:
            found["of another shape"].append(f"{name}, {stored} for {shape}" + (" in 4 bits" if is_packed else ""))
    return found


def unusable(model: Any) -> list[str]:
    """The layers of a loaded model that are packed, or should be, and whose parts do not fit or are not finite."""
    layers = ((name, module) for name, module in model.named_modules() if type(module).__name__ == "Linear4bit")
    return [name for name, module in layers if not _is_whole(module)]


def _is_whole(module: Any) -> bool:
    weight, size = module.weight, module.out_features * module.in_features
    state = getattr(weight, "quant_state", None)
    if state is None or tuple(state.shape) != (module.out_features, module.in_features):
        return False
    scales = [(state.absmax, -(-size // state.blocksize))]
    if state.nested:
        scales.append((state.state2.absmax, -(-scales[0][1] // state.state2.blocksize)))
    fits = weight.numel() * weight.element_size() == -(-size // 2)
    finite = all(bool(values.isfinite().all()) for values in (state.code, *(scale for scale, _ in scales)))
    return fits and finite and all(scale.numel() == count for scale, count in scales)
