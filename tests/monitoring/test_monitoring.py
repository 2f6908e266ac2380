"""What is in deploy/, against a real Prometheus that scrapes a real server under load.

REALM_BINARY is the server, PROMETHEUS the folder of `prometheus` and `promtool`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
import yaml

TIMEOUT = 120
HERE = Path(__file__).parent
DEPLOY = HERE.parent.parent / "deploy"
PROMETHEUS = Path(os.environ["PROMETHEUS"])
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/realm.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
RUNBOOK = (DEPLOY.parent / "docs/operations.md").read_text()

# Long enough for many scrapes, short enough for the load to fill it.
VARIABLES = {"$__rate_interval": "30s", "$model": ".*", "$tenant": ".*"}

SETTINGS = """
api_keys = "keys.json"

[server]
port = 0
admin_addr = "127.0.0.1:0"

[worker]
kv_memory = "64MiB"

[[tenant]]
id = "limited"
requests_per_minute = 30
"""


def promtool(*args):
    done = subprocess.run([PROMETHEUS / "promtool", *args], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_settings():
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_every_alert_fires_when_it_should_and_only_then():
    promtool("test", "rules", HERE / "alerts_test.yml")
    cases = (HERE / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in cases] == []


def test_the_runbook_speaks_of_what_the_dashboard_has():
    titles = {kind: [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == kind] for kind in ("row", "timeseries")}
    table = RUNBOOK.split("| row | look for |")[1].split("\n\n")[0]
    assert re.findall(r"^\| (\w[\w ]+) \|", table, re.MULTILINE) == titles["row"]
    assert set(re.findall(r"\*([^*]+)\*", table)) <= set(titles["timeseries"])


def test_every_alert_has_a_place_in_the_runbook():
    headings = re.findall(r"^### (Realm\w+)$", RUNBOOK, re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_what_an_alert_is_about_is_on_the_dashboard():
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))
    for rule in RULES:
        for metric in metrics(rule) - {"up"}:
            assert metric in shown, f"{rule['alert']} is about {metric}"


def metrics(rule):
    """The metrics that an alert is about."""
    return set(re.findall(r"\b(?:up|vllm:\w+|realm_\w+)\b", rule["expr"]))


def queries():
    """What the dashboard asks, by panel, as Prometheus gets it from Grafana."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, f"{panel['title']} uses a variable that is not there: {query}"
            yield pytest.param(query, id=f"{panel['title']}, {target['refId']}")


def running(command, log):
    """Starts a process that logs to `log`."""
    with open(log, "w") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def wait_for(holds, process, log):
    deadline = time.monotonic() + TIMEOUT
    while not (result := holds()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not within {TIMEOUT} s: {log.read_text()}"
        time.sleep(0.1)
    return result


def ended(process):
    process.terminate()
    process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def realm(tmp_path_factory):
    """A server under load of two tenants, one of which is limited."""
    place = tmp_path_factory.mktemp("realm")
    (place / "realm.toml").write_text(SETTINGS)
    binary, log = os.environ["REALM_BINARY"], place / "log"
    keys = []
    for tenant in ("acme", "limited"):
        command = [binary, "api-key", "generate", "--tenant", tenant, "--name", "test", "--file", place / "keys.json"]
        keys.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    server = running([binary, "serve", "--config", place / "realm.toml"], log)
    over, loads, statuses = threading.Event(), [], set()
    try:

        def found():
            urls = dict(re.findall(r"(listening|admin) on http://(\S+)", log.read_text()))
            return len(urls) == 2 and requests.get(f"http://{urls['admin']}/ready", timeout=TIMEOUT).ok and urls

        urls = wait_for(found, server, log)

        def load(key, tokens, pause):
            # The same beginning each time, for the prefix cache; long enough to fill a block of it.
            body = {"model": "realm-tiny", "prompt": "The old house by the river. " * 8, "max_tokens": tokens}
            headers = {"authorization": f"Bearer {key}"}
            while not over.wait(pause):
                url = f"http://{urls['listening']}/v1/completions"
                statuses.add(requests.post(url, json=body, headers=headers, timeout=TIMEOUT).status_code)

        loads = [threading.Thread(target=load, args=[key, 8, 0.05]) for key in keys]
        # One that is under way at any time, also when the worker ends.
        loads.append(threading.Thread(target=load, args=[keys[0], 400, 0]))
        for thread in loads:
            thread.start()
        yield server, urls["admin"]
        # None of them may have been harmed by the end of the worker.
        assert statuses == {200, 429}
    finally:
        over.set()
        for thread in loads:
            thread.join()
        ended(server)


def worker_of(server):
    """Process id of the server's worker."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if name == "realm-worker" and int(rest.split()[1]) == server.pid:
            return int(stat.parent.name)
    raise AssertionError("the server has no worker")


@pytest.fixture(scope="module")
def ask(realm, tmp_path_factory):
    """Asks a Prometheus that has the settings in deploy/, but scrapes each second, until the answer will do. Before, a
    worker of the server is killed."""
    server, admin = realm
    place = tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = [admin]
    (place / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [PROMETHEUS / "prometheus", f"--config.file={place / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={place / 'data'}", f"--web.listen-address={address}"]
    log = place / "log"
    prometheus = running(command, log)

    def get(path, **params):
        answer = requests.get(f"http://{address}/api/v1/{path}", params=params, timeout=TIMEOUT).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def until(holds, path, **params):
        return wait_for(lambda: holds(get(path, **params)), prometheus, log)

    try:

        def ready():
            try:
                return requests.get(f"http://{address}/-/ready", timeout=TIMEOUT).ok
            except requests.ConnectionError:
                return False

        wait_for(ready, prometheus, log)
        # Seen before and after, the end of a worker is an increase.
        until(lambda data: data["result"], "query", query="count_over_time(realm_worker_ends_total[1m]) > 2")
        os.kill(worker_of(server), signal.SIGKILL)
        yield until
    finally:
        ended(prometheus)


@pytest.mark.parametrize("query", list(queries()))
def test_a_panel_shows_something(ask, query):
    def finite(data):
        return [sample for sample in data["result"] if sample["value"][1] not in ("NaN", "+Inf", "-Inf")]

    assert ask(finite, "query", query=query)


@pytest.mark.parametrize("variable", [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"])
def test_a_variable_has_values(ask, variable):
    metric, label = re.fullmatch(r"label_values\((\S+), (\S+)\)", variable["query"]["query"]).groups()
    assert ask(lambda data: data["result"], "query", query=f'count by ({label}) ({metric}{{{label}!=""}})')


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_metrics_of_an_alert_are_there(ask, rule):
    for metric in metrics(rule):
        assert ask(lambda data: data["result"], "query", query=metric), metric


def test_an_end_of_a_worker_is_told_and_nothing_else(ask):
    def firing(data):
        return {alert["labels"]["alertname"] for alert in data["alerts"] if alert["state"] == "firing"}

    assert ask(firing, "alerts") == {"RealmWorkerEnded"}


def test_every_rule_can_be_evaluated(ask):
    """Prometheus says itself how each rule went."""

    def evaluated(data):
        rules = [rule for group in data["groups"] for rule in group["rules"]]
        return all(rule["health"] != "unknown" for rule in rules) and rules

    rules = ask(evaluated, "rules")
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in RULES]
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
