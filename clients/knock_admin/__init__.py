"""knock-admin, the operators' client.

It works with the operator's own AWS credentials and needs nothing of Knock's functions on the machine it runs
on: what a deployment is made of is asked of the deployment (`stack.py`).

| module | what |
|---|---|
| `cli.py`, `arguments.py`, `target_commands.py` | arguments, help, exit codes |
| `aws.py` | clients, and the one place where a call is sent, only listed (`--dry-run`), or remembered |
| `errors.py` | every error of ours, and what errors of AWS mean |
| `tags.py` | the tags' grammar: ports, durations, names, source widths (pure) |
| `output.py` | tables, JSON, JSON lines and CSV; values of the trail are data, never control sequences |
| `stack.py` | finds the pieces of a deployment |
| `targets.py`, `adopt.py`, `retarget.py` | targets made, taken in and let go, and changed |
| `attach.py` | what groups are attached to, and over which address families that is reached |
| `inside.py`, `why.py` | who is in by a target, and by a rule |
| `keys.py`, `grants.py`, `doctor.py` | the other commands |
| `stores.py`, `simpledb.py`, `dynamodb.py` | what the stack keeps its records in, and the two there are |
| `trail.py`, `ledger.py` | what is on record, and the commands that show it |
| `doors.py`, `report.py` | when doors were open, and a month of that |
| `trailcopy.py`, `genuine.py` | carries the record from one store to the other, if it is as Knock makes it |
"""
