"""Running on a cluster of somebody else's: the entry point of a Ray job, and the manifests that start one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT, Made, assert_same, write_lines


def _submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.submit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--input", "chats", "--out", "/shared/grids"], "--input chats: a job runs in a copy"),
        (["--input", "/shared/chats", "--out", "grids"], "--out grids: a job runs in a copy"),
        (["--input", "s3://b/chats", "--out", "s3://b/grids", "--plans", "old"], "--plans old: a job runs in a copy"),
    ],
)
def test_a_relative_path_is_refused(options: list[str], named: str) -> None:
    """It would be written to the job's copy of the working directory, and deleted with it."""
    ran = _submit(*options)
    assert ran.returncode == 2 and named in ran.stderr and "Traceback" not in ran.stderr


def test_it_is_convert(tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "chats.jsonl", 10)
    ran = _submit("--input", str(corpus), "--out", str(tmp_path / "out"), "--ray", "off", "--set", "k=2")
    assert ran.returncode == 0, ran.stderr
    assert Path(tmp_path, "out", "dataset.json").exists()


@pytest.mark.ray
def test_ray_job_submit(small: Made, cluster: str, dashboard: str, tmp_path: Path) -> None:
    """A whole job on a real cluster: the same bytes, plain progress, and a failure is the job's failure."""
    options = [*small.options[1:], "--out", str(tmp_path / "out"), "--workers", "2"]
    ran = _ray_job(dashboard, tmp_path, options)
    assert ran.returncode == 0, ran.stdout
    assert "2 workers, Ray cluster of 1 node" in ran.stdout
    assert_same(tmp_path / "out", small.contents)
    ran = _ray_job(dashboard, tmp_path, [*options, "--set", "k=5"])
    assert ran.returncode != 0 and "recipe.options.k: 1 there, 5 now" in ran.stdout


def _ray_job(dashboard: str, folder: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", f"--address={dashboard}"]
    command += ["--working-dir", str(_checkout(folder)), "--", sys.executable, "-m", "jobs.submit", *options]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "COLUMNS": "200"}
    while True:
        ran = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            check=False,
            timeout=90,
        )
        if "please try again later" not in ran.stdout:  # what serves jobs starts after the cluster itself
            return ran
        time.sleep(1)


def _checkout(folder: Path) -> Path:
    """What of this project a job needs, without what happens to lie around."""
    copy = folder / "checkout"
    if not copy.exists():
        copy.mkdir()
        for name in ("pipeline", "jobs", "schemas"):
            (copy / name).symlink_to(ROOT / name)
    return copy


def test_the_cluster_file_satisfies_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "jobs" / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("ray start" in command for command in cluster[commands])


def test_the_rayjob_is_what_kuberay_wants_and_its_command_exists() -> None:
    job = yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert "rayStartParams" in group
        pod: dict[str, Any] = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"] and container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    python, flag, module, *options = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "jobs.submit")
    from jobs.submit import job as command

    context = command.make_context("jobs.submit", list(options))  # refuses options that do not exist
    mounted = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    assert all(path.startswith(mounted) for path in (*context.params["inputs"], context.params["out"]))


@pytest.mark.parametrize("name", ["cluster.yaml", "rayjob.yaml", "submit.py"])
def test_the_commands_in_comments_exist(name: str) -> None:
    from jobs.submit import job as command

    text = (ROOT / "jobs" / name).read_text().replace("\\\n", " ").replace("\n#", " ")
    shown = [part.split("\n")[0].split("#")[0] for part in text.split("python -m jobs.submit")[1:]]
    assert shown
    for options in shown:
        command.make_context("jobs.submit", shlex.split(options.split("   ")[0]))
