"""The dashboard and the alert rules: what they name exists, and what exists is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scraping import Scrape

from he_runtime.errors import Reason
from server.observe.events import (
    CallEnded,
    Evaluated,
    JobsChanged,
    KeyCacheChanged,
    WorkerUp,
)
from server.observe.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
METRIC = re.compile(r"\b(?:secateur|process)_\w+")
SELECTOR = re.compile(r"\b((?:secateur|process)_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
SUFFIXES = ("_bucket", "_sum", "_count", "_total", "_created", "_info")


@pytest.fixture(scope="module")
def scrape() -> Scrape:
    """A registry in which everything has happened once, so that every metric has its samples."""
    metrics = Metrics("1", 5)
    for event in (
        CallEnded("InferenceService/Infer", "SERVER_BUSY", "a", 0.1),
        WorkerUp(0),
        KeyCacheChanged(0, 1, 1, 1, 1),
        Evaluated("digits", "1", 1.0, 5.0, 5.0, {"fc": 5.0}, {"fc": "linear"}, 4.0),
        JobsChanged({"running": 1}),
    ):
        metrics(event)
    return Scrape.of(metrics)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((DEPLOY / "grafana" / "secateur.json").read_text())
    return record


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts: list[dict[str, Any]] = group["rules"]
    return alerts


def expressions(dashboard: dict[str, Any]) -> list[str]:
    queries = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def labels_of(scrape: Scrape, metric: str) -> set[str]:
    return {label for name, labels in scrape.samples if name == metric for label, _ in labels}


def check(scrape: Scrape, expression: str) -> Iterator[str]:
    """What is wrong with the metrics, labels and brackets of a PromQL expression."""
    exist = {name for name, _ in scrape.samples}
    yield from (f"{name} does not exist" for name in METRIC.findall(expression) if name not in exist)
    for metric, selector in SELECTOR.findall(expression):
        unknown = set(LABEL.findall(selector)) - labels_of(scrape, metric) - {"instance", "job"}
        yield from (f"{metric} has no label {label}" for label in unknown)
    for by in re.findall(r"\bby \(([^)]*)\)", expression):
        given = set().union(*(labels_of(scrape, m) for m in METRIC.findall(expression)))
        yield from (f"no label {label}" for label in set(by.split(", ")) - given - {"instance", "job"})
    if any(expression.count(a) != expression.count(b) for a, b in ("()", "{}", "[]")):
        yield "brackets"


def test_the_dashboard_names_only_what_exists(scrape: Scrape, dashboard: dict[str, Any]) -> None:
    assert [problem for e in expressions(dashboard) for problem in check(scrape, e)] == []


def test_every_metric_is_shown(scrape: Scrape, dashboard: dict[str, Any]) -> None:
    shown = set(
        METRIC.findall(" ".join(p for x in dashboard["panels"] for p in (t["expr"] for t in x.get("targets", ()))))
    )

    def family(name: str) -> str:
        return next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)

    exist = {family(name) for name, _ in scrape.samples if name.startswith("secateur_")}
    assert len(exist) > 15
    assert exist - {family(name) for name in shown} == set()


def test_the_checks_find_what_they_are_for(scrape: Scrape) -> None:
    assert list(check(scrape, "secateur_no_such_thing")) == ["secateur_no_such_thing does not exist"]
    assert list(check(scrape, 'secateur_queue_length{color="red"}')) == ["secateur_queue_length has no label color"]
    assert list(check(scrape, "sum by (color) (secateur_queue_length)")) == ["no label color"]
    assert list(check(scrape, "sum(secateur_queue_length")) == ["brackets"]


def test_the_dashboard_can_be_imported_anywhere(dashboard: dict[str, Any]) -> None:
    """It asks for the data source instead of naming somebody's, and its panels neither overlap nor share an id."""
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "instance", "model"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = {json.dumps(t["datasource"]) for p in panels for t in (p, *p.get("targets", ())) if "datasource" in t}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    cells = [
        (x, y)
        for g in (panel["gridPos"] for panel in panels)
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) == 23
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_alerts_name_only_what_exists_and_say_what_to_do(scrape: Scrape, rules: list[dict[str, Any]]) -> None:
    assert [problem for rule in rules for problem in check(scrape, rule["expr"])] == []
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"] and rule["annotations"]["action"]


def test_alerts_name_reasons_that_there_are(rules: list[dict[str, Any]]) -> None:
    named = {r for rule in rules for text in re.findall(r'reason=~"([^"]*)"', rule["expr"]) for r in text.split("|")}
    assert named and named <= set(Reason.__members__)


def test_the_scrape_configuration_loads_the_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"] and config["scrape_configs"][0]["job_name"] == "secateur"
