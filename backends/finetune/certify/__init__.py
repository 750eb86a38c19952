"""``crma certify``: every promised bound of a finished run, checked again from its files."""
