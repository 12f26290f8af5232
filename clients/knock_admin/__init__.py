"""knock-admin, the operators' client.

It works with the operator's own AWS credentials and needs nothing of Knock's functions on the machine it runs
on: what a deployment is made of is asked of the deployment (`stack.py`).

| module | what |
|---|---|
| `cli.py` | arguments, help, exit codes |
| `aws.py` | clients, and the one place where a call is sent, only listed (`--dry-run`), or remembered |
| `errors.py` | every error of ours, and what errors of AWS mean |
| `tags.py` | the tags' grammar: ports, durations, names, source widths (pure) |
| `output.py` | tables, JSON, JSON lines and CSV; values of the trail are data, never control sequences |
| `stack.py` | finds the pieces of a deployment |
| `targets.py`, `keys.py`, `grants.py`, `doctor.py` | the commands |
| `simpledb.py` | reads the stack's domains |
| `trail.py`, `ledger.py` | what is on record, and the commands that show it |
"""
