"""The scripts of `make soak` and `make chaos` run together, and every one of them is in the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.service import together
from benchmarks.service.memory import _growth
from benchmarks.service.overhead import front_door
from benchmarks.service.together import KINDS, Script, run_all

SERVICE = Path(together.__file__).parent


def test_every_script_is_run_by_one_of_the_two_and_has_its_row() -> None:
    scripts = {p.stem for p in SERVICE.glob("*.py") if 'if __name__ == "__main__"' in p.read_text()}
    listed = [script.name for kind in KINDS.values() for script in kind]
    assert sorted(listed) == sorted(scripts - {"together", "dying"})
    rows = set(re.findall(r"^\| `(\w+)\.py` \| (\w+)", (SERVICE / "README.md").read_text(), re.MULTILINE))
    assert rows == {(script.name, kind) for kind, scripts in KINDS.items() for script in scripts}


def test_a_script_that_fails_prints_nothing_or_hangs_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "good": "print('noise'); print('{\"ok\": true, \"figure\": 3}')",
        "bad": "print('{\"ok\": false}'); raise SystemExit(1)",
        "mute": "pass",
        "hangs": "import time; time.sleep(60)",
    }
    monkeypatch.setattr(Script, "command", lambda self, share: [together.sys.executable, "-c", texts[self.name]])
    monkeypatch.setattr(together.importlib.util, "find_spec", lambda name: None if "absent" in name else object())
    monkeypatch.setattr(together, "_START_SECONDS", 0.0)
    scripts = tuple(Script(name, "--count", 1, 1 if name == "hangs" else 60) for name in (*texts, "absent"))
    report = run_all(scripts, share=1.0)
    assert {name: found["ok"] for name, found in report["scripts"].items()} == {
        "good": True,
        "bad": False,
        "mute": False,
        "hangs": False,
    }
    assert report["scripts"]["good"]["figure"] == 3 and not report["ok"]
    assert run_all(scripts[:1])["ok"]
    assert json.loads(capfd.readouterr().err.splitlines()[0])["good"]["ok"]


def test_growth_is_between_the_second_and_the_last_fifth() -> None:
    assert _growth([1, 1, *[100] * 8]) == 0.0, "caches that fill in the first are no growth"
    assert _growth([100] * 8 + [104] * 2) == pytest.approx(0.04)


def test_the_overhead_is_measured(tmp_path: Path) -> None:
    """The figure itself means something only on a quiet machine."""
    report = front_door(tmp_path, count=10)
    assert 0 < report["overhead_ms_p50"] <= report["overhead_ms_p95"] and report["limit_ms"] == 5.0
