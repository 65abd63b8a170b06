"""Runs the comparison as `python -m drivers`."""

from drivers.cli import main

if __name__ == "__main__":
    main()
