"""The models of the paper's Table 2 by name, and the same architectures with random weights. Source: ours."""

from backends.finetune.models.marker import is_random, random_size
from backends.finetune.models.random_weights import Size, build_random, random_model_folder
from backends.finetune.models.zoo import ZOO, ZooModel, find_model

__all__ = [
    "ZOO",
    "Size",
    "ZooModel",
    "build_random",
    "find_model",
    "is_random",
    "random_model_folder",
    "random_size",
]
