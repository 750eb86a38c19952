"""``python -m conformance.golden_vectors`` writes spec/vectors; ``--check`` generates and compares. Clause: VEC-6."""

import sys

from conformance.golden_vectors.generate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
