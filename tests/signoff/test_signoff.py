"""The sign-off: a deployed stack opens and closes grants. On AWS by `make e2e STACK=…`, in CI locally.

A grant is 60 seconds long on AWS. All tests take about five minutes there, metrics included.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from grants.values import parse_time
from tests.signoff.conftest import PORT, STACK, Deployment

# From a grant's expires_at to its closed_at: Step Functions' own precision, one call of Lambda, one of EC2.
ON_TIME = timedelta(seconds=10)


class TestSignOff:
    def test_a_grant_opens_and_closes_at_its_end(self, deployment: Deployment) -> None:
        assert deployment.rules() == set()
        grant = deployment.open("sign-off: expiry")
        assert deployment.status(grant) == "RUNNING"
        (rule,) = (
            rule
            for rule in deployment.client("ec2").describe_security_group_rules(
                Filters=[{"Name": "group-id", "Values": [deployment.group]}]
            )["SecurityGroupRules"]
            if not rule["IsEgress"]
        )
        assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", PORT, PORT)
        tags = {tag["Key"]: tag["Value"] for tag in rule["Tags"]}
        assert tags == {"knock:stack": deployment.stack.name, "knock:grant": grant["id"]}

        expires_at = parse_time(grant["expires_at"])
        time.sleep(max(0, (expires_at - datetime.now(UTC)).total_seconds() - 1.5))
        rules = deployment.rules()
        assert rules == {grant["source"]} or datetime.now(UTC) >= expires_at, "it closed before its end"
        deployment.wait(lambda: deployment.status(grant) == "SUCCEEDED", "its execution runs on", 30)
        deployment.wait(lambda: deployment.rules() == set(), "its rule is still there", 15)
        record = deployment.trail.get(grant["id"])
        assert record
        assert record.ended_at
        assert record.closed_at
        assert expires_at <= record.ended_at <= record.closed_at <= expires_at + ON_TIME
        assert deployment.events(grant) == ["requested", "authorized", "expired", "closed"]

    def test_a_grant_is_revoked_early(self, deployment: Deployment) -> None:
        grant = deployment.open("sign-off: revocation")
        answer = deployment.call("DELETE", f"/grants/{grant['id']}", params={"reason": "done"})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["status"], answer.json()["ended_by"]) == ("revoked", deployment.target)
        deployment.wait(lambda: deployment.rules() == set(), "its rule is still there", 15)
        deployment.wait(lambda: deployment.status(grant) == "ABORTED", "its execution runs on", 15)
        assert deployment.events(grant) == ["requested", "authorized", "revoked", "closed"]

    def test_a_renewal_supersedes_the_older_grant(self, deployment: Deployment) -> None:
        old = deployment.open("sign-off: to be renewed", duration="10m")
        new = deployment.open("sign-off: renewal", duration="10m", renews=old["id"])
        deployment.wait(lambda: deployment.status(old) == "ABORTED", "the older one's execution runs on", 15)
        assert deployment.events(old) == ["requested", "authorized", "superseded", "closed"]
        assert deployment.status(new) == "RUNNING"
        assert deployment.rules() == {new["source"]}
        assert deployment.call("DELETE", f"/grants/{new['id']}").status_code == 200
        deployment.wait(lambda: deployment.rules() == set(), "its rule is still there", 15)

    def test_stopping_the_execution_revokes_the_grant(self, deployment: Deployment) -> None:
        grant = deployment.open("sign-off: stop")
        deployment.client("stepfunctions").stop_execution(
            executionArn=grant["execution_arn"], cause="sign-off"
        )
        deployment.wait(lambda: deployment.rules() == set(), "its rule is still there", 60)
        deployment.wait(lambda: "closed" in deployment.events(grant), "the trail has no event closed", 15)
        answer = deployment.call("GET", f"/grants/{grant['id']}").json()
        assert (answer["status"], answer["ended_by"]) == ("revoked", "an AWS operator")

    def test_a_key_opens_nothing_beyond_its_rights(self, deployment: Deployment) -> None:
        answer = deployment.call("POST", "/knock", json={"targets": [deployment.target], "duration": "21m"})
        assert answer.status_code in (400, 403), answer.text  # 400 where the stack allows less than the key
        answer = deployment.call("POST", "/knock", json={"targets": ["no-such-target"]})
        assert answer.status_code == 403, answer.text
        assert deployment.call("DELETE", "/grants", params={"principal": "x"}).status_code == 403


if STACK:

    class TestMetrics:
        """On AWS only: the local stack has no CloudWatch; tests/e2e/test_metrics.py reads its logs."""

        def test_the_metrics_that_the_alarms_watch_are_written(self, deployment: Deployment) -> None:
            """After the grants above. A metric takes CloudWatch a minute or two."""
            watch = deployment.client("cloudwatch")
            for metric, function in (
                ("GrantOpened", "authorize"),
                ("GrantEnded", "revoke"),
                ("RevocationLag", "revoke"),
                ("Refusal", "api"),
            ):
                service = deployment.stack.functions[function]["FunctionName"]

                def has_datapoints(metric: str = metric, service: str = service) -> bool:
                    now = datetime.now(UTC)
                    return bool(
                        watch.get_metric_statistics(
                            Namespace="Knock",
                            MetricName=metric,
                            Dimensions=[{"Name": "service", "Value": service}],
                            StartTime=now - timedelta(minutes=15),
                            EndTime=now + timedelta(minutes=1),
                            Period=60,
                            Statistics=["SampleCount"],
                        )["Datapoints"]
                    )

                deployment.wait(has_datapoints, f"{metric} of {service} is not in CloudWatch", 300)

        def test_no_alarm_went_off(self, deployment: Deployment) -> None:
            alarms = deployment.client("cloudwatch").describe_alarms(
                AlarmNamePrefix=f"{deployment.stack.name}-", StateValue="ALARM"
            )["MetricAlarms"]
            # On a new stack the guard has not run yet, so its alarm is on.
            assert {alarm["AlarmName"] for alarm in alarms} <= {f"{deployment.stack.name}-GuardSilent"}
