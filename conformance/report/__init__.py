"""The report of a run: what was reached, what is allowed, and what may be said of a port. Clauses: CONF-1, CONF-2."""
