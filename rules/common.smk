import logging
import signal
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, workflow.basedir)

from understudy import graph, process, resources
from understudy.config import parse as parse_study
from understudy.config import refuse_misread
from understudy.data.sources import fingerprints
from understudy.errors import UnderstudyError
from understudy.models import hardware
from understudy.paths import StudyPaths
from understudy.sections import sections


def refuse(error):
    """End with a message and the exit code that goes with it. Snakemake ends with 1 whatever it catches, and not this."""
    print(f"understudy: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


try:
    for path in workflow.configfiles:
        refuse_misread(Path(path))
    STUDY = parse_study(config, " + ".join(map(str, workflow.configfiles)) or "the config")
except UnderstudyError as error:
    refuse(error)

PATHS = StudyPaths(Path(STUDY.results))
SETTINGS = sections(STUDY, fingerprints(STUDY.data.files, PATHS.manifest) if workflow.is_main_process else {})
PROXY_PACKS = graph.proxy_packs(STUDY)
ECHO_PACKS = graph.echo_packs(STUDY)
LIMITS = {role: resources.job_limits(STUDY, role, PATHS.model(role)) for role in ("proxy", "target")}
TRIAL_LIMITS = resources.trial_limits(STUDY, PATHS.model("target"))

# Rules call `exec python -m understudy …`: this interpreter, or that of a conda environment activated in front of it.
# `exec` makes the command a child of this process, so that it sees at once when this process is gone.
process.lead_children(
    workflow.basedir,
    other_interpreter=bool(workflow.deployment_settings.deployment_method - {DeploymentMethod.ENV_MODULES}),
)

if workflow.is_main_process:
    hardware.note_job()

# A scheduler may tell all processes of a job that its time is nearly up. The command saves and ends; Snakemake itself,
# which would end at once and take the command along, waits for it.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# A log of Snakemake's that a full disk doesn't take would cover the message about it with a traceback per line.
logging.raiseExceptions = False


wildcard_constraints:
    section="[a-z-]+",
    role="proxy|target",
    pack="(default|random|sobol|grid)-[0-9]+",
    echo="echo-[0-9]+",
    number="[0-9]{4}",
    rank="[0-9]+",
    seed="[0-9]+",
