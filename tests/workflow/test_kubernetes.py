"""The profile for Kubernetes, as far as it goes without a cluster: a dry run."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import ROOT, Study, tiny

PLUGINS = ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs")

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(not all(map(find_spec, PLUGINS)), reason="the extra `kubernetes` isn't installed"),
]


def test_a_dry_run_has_a_pod_for_every_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(target__trials=4, target__window=1))
    head = study.command("--dry-run", "--workflow-profile", str(ROOT / "workflow" / "profiles" / "kubernetes"))
    done = subprocess.run(
        [*head, "--container-image", "example/image", "--quiet", "progress"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "the whole study: " in done.stdout
    assert len(re.findall("^rule train_target:", done.stdout, re.MULTILINE)) == 4
    assert re.search(r"^ +resources: .*mem_mb=\d+", done.stdout, re.MULTILINE)
