"""Poems: where they come from, how they are written down, what makes them good verse."""
