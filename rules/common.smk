import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from understudy import graph, lock, progress
from understudy.config import parse
from understudy.data.pin import check_interpreter
from understudy.errors import UnderstudyError
from understudy.paths import StudyPaths
from understudy.sections import sections

try:
    STUDY = parse(config, " + ".join(map(str, workflow.configfiles)) or "the config")
except UnderstudyError as error:
    raise WorkflowError(str(error)) from None

PATHS = StudyPaths(Path(STUDY.results))
SETTINGS = sections(STUDY)
PROXY_PACKS = graph.proxy_packs(STUDY)
ECHO_PACKS = graph.echo_packs(STUDY)

# Each job replaces its shell, so that it sees at once when the workflow's main process is gone.
_INTERPRETER = "python" if workflow.deployment_settings.deployment_method else shlex.quote(sys.executable)
UNDERSTUDY = f"PYTHONPATH={shlex.quote(workflow.basedir)} exec {_INTERPRETER} -m understudy"


wildcard_constraints:
    section="[a-z-]+",
    role="proxy|target",
    pack="(default|random|sobol|grid)-[0-9]+",
    echo="echo-[0-9]+",
    number="[0-9]{4}",
    rank="[0-9]+",
    seed="[0-9]+",


def begin_run():
    """Refuse a second run of the study and a foreign interpreter; note what there is to do."""
    try:
        lock.acquire(PATHS.lock)
        check_interpreter(PATHS.root)
    except UnderstudyError as error:
        raise WorkflowError(str(error)) from None
    progress.start(PATHS.progress, graph.totals(STUDY))


def inputs_of_training(role):
    """What every command that trains reads, beside the trial itself."""
    return {
        "model": PATHS.model(role),
        "manifest": PATHS.manifest,
        "train": PATHS.data("train"),
        "validation": PATHS.data("validation"),
        "execution": PATHS.execution,
        "training": PATHS.settings("training"),
    }


def gpus(role):
    """GPUs that one trial holds."""
    execution = STUDY.execution
    return getattr(execution, role).processes if execution.device == "cuda" else 0


def cores(role):
    """Cores that one trial keeps busy."""
    stage = getattr(STUDY.execution, role)
    return stage.threads * stage.processes


def all_proxy_results():
    """The results of every pack of the proxy search."""
    return [PATHS.pack_results(pack) for pack in PROXY_PACKS]


def all_echo_results():
    """The results of every pack that repeats target configurations on the proxy."""
    return [PATHS.pack_results(pack) for pack in ECHO_PACKS]


def all_proposals():
    """The target's proposals in order."""
    return [PATHS.proposal(number) for number in range(STUDY.target.trials)]


def all_target_results():
    """The target's results in order."""
    return [PATHS.target_result(number) for number in range(STUDY.target.trials)]


def all_finalist_results():
    """The finalists' results, rank by rank."""
    return [PATHS.finalist_result(rank, seed) for rank, seed in graph.finalist_runs(STUDY)]


def before_proposal(wildcards):
    """The newest proposal and the newest result that a proposal may see; older ones are there when these are."""
    number, window = int(wildcards.number), STUDY.target.window
    needed = [PATHS.proposal(number - 1)] if number else []
    return needed + ([PATHS.target_result(number - window)] if number >= window else [])


def proposals_of_echo(wildcards):
    """The proposals whose configurations an echo pack repeats."""
    return [PATHS.proposal(number) for number in ECHO_PACKS[wildcards.echo].numbers]
