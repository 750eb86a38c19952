"""The conformance suite: property tests that tell a correct port of CRMA from a wrong one.

Run it with ``pytest conformance/ --backend=NAME`` or ``python -m conformance --backend=NAME``; NAME is a known backend
or ``module:factory`` of a port of your own.
"""
