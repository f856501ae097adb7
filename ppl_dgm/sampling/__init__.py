"""Draws, log weights and chains that objectives and evidence share."""
