"""Everything that only a GPU can show, in one command within a time box: ``python -m bench.gpu --out FILE.json``."""
