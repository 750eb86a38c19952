"""Experience replay: every update sees a batch of the current task and a batch from memories of the earlier tasks.

Source: D. Rolnick, A. Ahuja, J. Schwarz, T. Lillicrap, G. Wayne (2019), "Experience Replay for Continual Learning",
NeurIPS 32; A. Chaudhry, M. Rohrbach, M. Elhoseiny, T. Ajanthan, P. Dokania, P. Torr, M. Ranzato (2019), "On Tiny
Episodic Memories in Continual Learning", arXiv:1902.10486, algorithm 1.

Left to us: the memory (``memory.py``); the replayed batch is added to the loss, as in Chaudhry et al., and not traded
against new data, as in Rolnick et al.; Rolnick et al.'s V-trace and behavioural cloning belong to reinforcement
learning and are left out.
"""

from backends.finetune.methods.method import Condition, Mark, Method
from backends.finetune.methods.section import MemorySection


class ExperienceReplay(Method):
    """The session joins the examples to the batches: nothing is left for the engine to do."""

    section = MemorySection
    memory = "joined"


CONDITIONS = (
    Condition(
        "replay", "Experience replay", Mark("#CC79A7", (0, (1, 1)), "^"), trains="shared", method=ExperienceReplay
    ),
)
