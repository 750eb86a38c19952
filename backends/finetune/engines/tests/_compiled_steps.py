"""Two steps and the scores of a batch in JAX, with MODEL and PROTOCOL; prints their bits, and what was compiled."""

import json
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from backends.finetune.engines.by_name import engine_factory
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.encoding import EncodedExample, collate
from backends.finetune.tasks.job import Job

events: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
model, protocol = Path(sys.argv[1]), load_protocol(sys.argv[2], precision="mixed")
engine = engine_factory("jax-cpu")[0](Job(model, protocol, parse_condition("modular"), 0))
engine.begin_phase(0, 2)
ids = np.random.default_rng(0).integers(3, 90, (3, 12)).tolist()
batch = collate([EncodedExample(tuple(row), 1) for row in ids], 0)
losses = [engine.step([batch], index).loss for index in range(2)]
losses += [score.loss for score in engine.scores([batch])]
kept = {name: events[name] for name in ("compile_requests_use_cache", "cache_hits")}
print(json.dumps(kept | {"losses": [loss.hex() for loss in losses]}))
