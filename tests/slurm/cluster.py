"""A real SLURM cluster on one machine: a controller and several nodes with fake GPUs, on the loopback interface.

Needs root and the programs of slurmctld, slurmd, slurm-client and munge. Everything lies below one folder; what is
started is stopped by its process id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest

Found = TypeVar("Found")

PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_not() -> str | None:
    """Why no cluster can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    return None if os.geteuid() == 0 else "only root starts several nodes on one machine"


NEEDS_CLUSTER = [pytest.mark.slurm, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
needs_plugin = pytest.mark.skipif(
    find_spec("snakemake_executor_plugin_slurm") is None, reason="the extra `slurm` isn't installed"
)


@dataclass
class Job:
    """A job in the queue; `comment` is its rule and wildcards."""

    id: str
    state: str
    name: str
    node: str
    comment: str


@dataclass
class Cluster:
    """Nodes `n1`, `n2`, … with some cores, memory and fake GPUs each."""

    folder: Path
    nodes: int = 3
    cores: int = 2
    memory_mb: int = 8000
    gpus: int = 4
    more: tuple[str, ...] = ()  # lines of slurm.conf
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """For programs that talk to this cluster."""
        return {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{SEARCHED}",
        }

    def start(self) -> None:
        """Start everything and wait until all nodes are idle."""
        for name in ("bin", "state", "log", "devices", *(f"spool/n{number}" for number in range(1, self.nodes + 1))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._start_munge()
        self._start("slurmctld", "-D", "-c")
        for number in range(1, self.nodes + 1):
            self._start("slurmd", "-D", "-N", f"n{number}")
        self.wait_for_nodes()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cancel all jobs and stop what was started, the controller's helpers last."""
        with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
            self.clear()
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def clear(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self.call("scancel", "--user", "root")
        self._wait(lambda: not self.jobs(), 60, "jobs to end")

    def call(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def jobs(self) -> list[Job]:
        """What is in the queue and hasn't ended."""
        listed = self.call("squeue", "--noheader", "--format", "%i|%T|%j|%N|%k").splitlines()
        return [Job(*line.split("|", 4)) for line in listed]

    def wait_for_job(self, *comments: str, seconds: float = 120, besides: Collection[str] = ()) -> Job:
        """Wait until a job with one of these comments runs, one that isn't among some ids."""

        def running() -> Job | None:
            found = (job for job in self.jobs() if job.comment in comments and job.id not in besides)
            return next((job for job in found if job.state == "RUNNING"), None)

        return self._wait(running, seconds, f"{' or '.join(comments)} to run")

    def wait_for_lack(self, comment: str) -> None:
        """Wait until the controller has found that a job can't begin with what is free. Fails where it can."""

        def lacks() -> bool:
            found = next((job for job in self.jobs() if job.comment == comment), None)
            assert found is None or found.state == "PENDING", f"{comment} began: {self.shown(found)}"
            return found is not None and self.shown(found)["Reason"] == "Resources"

        self._wait(lacks, 60, f"{comment} to find too little")

    def wait_for_end(self, job: Job, seconds: float = 120) -> None:
        """Wait until a job runs no longer: it has ended, or is back in the queue."""
        over = ("PENDING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self._wait(lambda: self.shown(job)["JobState"] in over, seconds, f"{job.comment} to end")

    def shown(self, job: Job) -> dict[str, str]:
        """What the controller says about a job: fields by name. The last node's share of it has names of its own."""
        text = self.call("scontrol", "--details", "--oneliner", "show", "job", job.id)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def names(self, job: Job) -> list[str]:
        """The names of a job's nodes."""
        return self.call("scontrol", "show", "hostnames", job.node).split()

    def wait_for_nodes(self) -> None:
        """Wait until all nodes are idle."""
        self._wait(lambda: self._idle() == self.nodes, 60, "all nodes to be idle")

    def history(self) -> dict[str, list[str]]:
        """The states of all jobs so far, by comment, in the order of submission; restarts of a job count as `REQUEUED`.

        A job that took too much memory is `FAILED`, as SLURM has it where the accounting plugin kills.
        """
        found: dict[str, list[str]] = {}
        for text in self.call("scontrol", "--oneliner", "show", "job").splitlines():
            fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
            states = ["REQUEUED"] * int(fields["Restarts"]) + [fields["JobState"]]
            found.setdefault(fields["Comment"], []).extend(states)
        return found

    def hurry(self, job: Job) -> None:
        """Let a job that was put back into the queue begin now; SLURM would wait for two minutes."""
        self._wait(lambda: any(each.id == job.id and each.state == "PENDING" for each in self.jobs()), 60, "a requeue")
        self.call("scontrol", "update", f"JobId={job.id}", "StartTime=now")

    def _idle(self) -> int:
        with contextlib.suppress(subprocess.SubprocessError):  # the controller isn't up yet
            return len(set(self.call("sinfo", "--noheader", "--Node", "--states", "idle", "--format", "%N").split()))
        return 0

    def _wait(self, condition: Callable[[], Found | None], seconds: float, what: str) -> Found:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}; queue: {self.jobs()}; logs in {self.folder}")
            time.sleep(0.2)
        return found

    def _start(self, program: str, *options: str) -> None:
        path = shutil.which(program, path=SEARCHED)
        assert path is not None, why_not()
        with (self.folder / "log" / f"{program}-{len(self.processes)}.txt").open("wb") as log:
            command = ["setpriv", "--pdeathsig", "TERM", path, *options]  # nothing stays when the tests are killed
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _start_munge(self) -> None:
        """Authentication of its own: key and socket below the folder, which munged wants nobody else to write to."""
        home = self.folder / "munge"
        home.mkdir(mode=0o700)
        (home / "key").touch(mode=0o600)
        (home / "key").write_bytes(secrets.token_bytes(128))
        files = {"socket": "socket", "key-file": "key", "seed-file": "seed", "pid-file": "pid", "log-file": "log"}
        self._start("munged", "--foreground", "--force", *(f"--{key}={home / name}" for key, name in files.items()))
        self._wait((home / "socket").exists, 20, "munged's socket")

    def _configure(self) -> None:
        """The cluster's files. Job steps lose SLURM_CONF on their way, so what they call gets it anew."""
        config = self.folder / "slurm.conf"
        ports = _free_ports(self.nodes + 1)
        host = os.uname().nodename.split(".")[0]
        for index in range(self.gpus):
            (self.folder / "devices" / f"nvidia{index}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(
            "AutoDetect=off\n"
            f"Name=gpu Type=fake File={self.folder}/devices/nvidia[0-{self.gpus - 1}] Flags=nvidia_gpu_env\n"
        )
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/%n.pid",
            "SlurmdParameters": "config_overrides",
            "ProctrackType": "proctrack/pgid",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0",
            "GresTypes": "gpu",
            "ReturnToService": 0,
            "MinJobAge": 3600,
            "KillWait": 2,
            "SlurmdTimeout": 30,
        }
        nodes = f"n[1-{self.nodes}]"
        lines = [
            *(f"{key}={value}" for key, value in settings.items()),
            f"NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{','.join(map(str, ports[1:]))}] "
            f"CPUs={self.cores} RealMemory={self.memory_mb} Gres=gpu:fake:{self.gpus}",
            f"PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE DefMemPerCPU=500",
            *self.more,
        ]
        config.write_text("\n".join(lines) + "\n")
        for name in ("srun", "squeue", "scontrol"):
            wrapper = self.folder / "bin" / name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which(name, path=SEARCHED)} "$@"\n')
            wrapper.chmod(0o755)


@contextlib.contextmanager
def spoken_to(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster from its start to its end, to which this process talks as well."""
    with cluster:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, cluster.environment[name])
        yield


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return sorted(each.getsockname()[1] for each in sockets)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
