"""What the entry point `api.py` is made of: requests, answers, the console page, ending grants."""
