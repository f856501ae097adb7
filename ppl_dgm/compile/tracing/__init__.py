"""Trace Pyro programs to graphs."""
