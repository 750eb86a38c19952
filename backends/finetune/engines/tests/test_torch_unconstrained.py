"""The control without the projection: it is bypassed, and recomputed, as CRMA is."""

import pytest

from backends.finetune.engines.torch.unconstrained import unconstrain
from backends.torch.tests.test_disabled import assert_recomputed


@pytest.mark.clause("CL-5")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes_what_the_forward_pass_did(reentrant: bool) -> None:
    assert_recomputed(reentrant, unconstrain)
