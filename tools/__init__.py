"""Programs for those who work on Knock: generated files, deploying, releasing, and breaking the code."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
