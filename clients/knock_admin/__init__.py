"""knock-admin, the operators' client.

It uses the operator's AWS credentials, and no code or configuration of Knock's functions: it finds the
resources of a deployment in AWS (`stack.py`).

| module | content |
|---|---|
| `cli.py` | common options, help, exit codes |
| `…_commands.py` | the commands, in groups, with their options |
| `arguments.py` | options that several commands have |
| `aws.py` | clients, and the hooks by which a call is sent, listed (`--dry-run`) and recorded |
| `errors.py` | the errors of this program, and the translation of botocore's |
| `tags.py` | the grammar of tags: ports, durations, names, source widths (pure) |
| `output.py` | tables, JSON, JSON lines and CSV, without control sequences |
| `stack.py` | finds the resources of a deployment |
| `targets.py`, `adopt.py`, `retarget.py` | make, adopt, release and change targets |
| `attach.py` | the resources that groups are attached to, and their address families |
| `keys.py`, `many.py` | API keys, and many of them at once |
| `grants.py`, `inside.py` | list and close live grants, of the stack, a target or a key |
| `why.py`, `why_key.py` | explain a rule, and whether a key can knock |
| `doctor.py` | checks a deployment |
| `stores.py`, `simpledb.py`, `dynamodb.py` | the interface to stores of records, and its implementations |
| `trail.py`, `ledger.py` | grants, refusals and ledgers on record |
| `open_periods.py`, `report.py` | the times in which grants were open, and the report of a month |
| `trailcopy.py`, `genuine.py` | copy the trail from the former store, and check records before |
"""
