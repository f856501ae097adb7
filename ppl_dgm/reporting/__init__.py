"""Plots and export of results."""
