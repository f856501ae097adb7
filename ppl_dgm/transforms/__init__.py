"""Invertible maps that Pyro lacks."""
