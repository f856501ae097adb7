"""Code generation for captured graphs."""
