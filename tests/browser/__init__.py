"""Tests of the console page in Chromium. A package, so that its fixtures end with it and not with the run."""
