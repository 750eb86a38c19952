"""Tests of the suite itself: a simple correct port, wrong ports made from it, the comparer and the plug-in."""
