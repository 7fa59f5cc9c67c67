"""Where everything of a study lies. Rules and commands both ask here, so that no path is spelt twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StudyPaths:
    """The files of one study below `root`. Arguments may be Snakemake wildcards such as `"{pack}"`."""

    root: Path

    # prepare
    def settings(self, section: str) -> Path:
        return self.root / "settings" / f"{section}.json"

    def data(self, split: str) -> Path:
        return self.root / "data" / f"{split}.parquet"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest.json"

    def model(self, role: str) -> Path:
        return self.root / "models" / role / "model.json"

    def execution(self, role: str) -> Path:
        return self.root / "execution" / f"{role}.json"

    # proxy
    def pack_specs(self, pack: str) -> Path:
        return self.root / "proxy" / "packs" / pack / "specs.json"

    def pack_results(self, pack: str) -> Path:
        return self.root / "proxy" / "packs" / pack / "results.json"

    @property
    def proxy_trials(self) -> Path:
        return self.root / "proxy" / "trials.parquet"

    # transfer
    @property
    def regions(self) -> Path:
        return self.root / "transfer" / "regions.json"

    @property
    def starts(self) -> Path:
        return self.root / "transfer" / "starts.json"

    # target
    @property
    def target_trials(self) -> Path:
        return self.root / "target" / "trials"

    def proposal(self, number: int | str) -> Path:
        return self.target_trials / _numbered(number) / "proposal.json"

    def target_result(self, number: int | str) -> Path:
        return self.target_trials / _numbered(number) / "result.json"

    @property
    def truncated_trials(self) -> Path:
        return self.root / "target" / "truncated"

    def truncated_proposal(self, number: int | str) -> Path:
        return self.truncated_trials / _numbered(number) / "proposal.json"

    def truncated_result(self, number: int | str) -> Path:
        return self.truncated_trials / _numbered(number) / "result.json"

    # finalists, test, decoding
    @property
    def selection(self) -> Path:
        return self.root / "finalists" / "selection.json"

    def finalist_result(self, rank: int | str, seed: int | str) -> Path:
        return self.root / "finalists" / str(rank) / str(seed) / "result.json"

    @property
    def winner(self) -> Path:
        return self.root / "finalists" / "winner.json"

    @property
    def decode(self) -> Path:
        return self.root / "decode" / "trials.json"

    @property
    def test(self) -> Path:
        return self.root / "test.json"

    # summary
    def table(self, name: str, suffix: str = "parquet") -> Path:
        return self.root / "summary" / f"{name}.{suffix}"

    def figure(self, name: str) -> Path:
        return self.root / "summary" / "figures" / f"{name}.svg"

    @property
    def headline(self) -> Path:
        return self.root / "summary" / "headline.txt"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def best_config(self) -> Path:
        return self.root / "best" / "config.yaml"

    # kept by the program itself; never a declared output
    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def progress(self) -> Path:
        return self.root / "progress.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def cluster_runs(self) -> Path:
        return self.root / "slurm.jsonl"

    @property
    def cluster_logs(self) -> Path:
        return self.root / "logs" / "slurm"

    def log(self, rule: str, *wildcards: str) -> Path:
        return self.root.joinpath("logs", rule, *wildcards).with_suffix(".log")


def _numbered(number: int | str) -> str:
    return f"{number:04d}" if isinstance(number, int) else number
