# What rules have in common: what their jobs read, and what they ask of a machine or a scheduler.

from understudy.models.folder import loaded
from understudy.shell import braced


def inputs_of_training(role):
    """What every command that trains reads, beside the trial itself."""
    return {
        "model": PATHS.model(role),
        "manifest": PATHS.manifest,
        "train": PATHS.data("train"),
        "validation": PATHS.data("validation"),
        "execution": PATHS.execution(role),
        "training": PATHS.settings("training"),
    }


def checked_target():
    """The target's model where it is the user's: what is wrong with it has to show before the proxy stage is paid for.

    A changed one has packs planned again, whose trials come out of the store. As an `ancient` input it wouldn't, but
    Snakemake passes over everything behind such an input when its job runs.
    """
    return PATHS.model("target") if STUDY.models.target.pretrain is None else []


def own_checkpoint(wildcards):
    """The files of a model that is a local folder, so that a changed one is noticed: those that its digest covers."""
    name = getattr(STUDY.models, wildcards.role).model_name_or_path
    return loaded(Path(name).expanduser()) if name else []


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


def all_truncated_results():
    """The results of the target's truncated runs in order; none without `target.truncated`."""
    return [PATHS.truncated_result(number) for number in range(graph.truncated_runs(STUDY))]


def before_proposal(wildcards):
    """The newest proposal and the newest result that a proposal may see; older ones are there when these are."""
    return _before(wildcards, PATHS.proposal, PATHS.target_result)


def before_truncated_proposal(wildcards):
    """The same of a truncated run."""
    return _before(wildcards, PATHS.truncated_proposal, PATHS.truncated_result)


def _before(wildcards, proposal, result):
    number, window = int(wildcards.number), STUDY.target.window
    needed = [proposal(number - 1)] if number else []
    return needed + ([result(number - window)] if number >= window else [])


def proposals_of_echo(wildcards):
    """The proposals whose configurations an echo pack repeats."""
    return [PATHS.proposal(number) for number in ECHO_PACKS[wildcards.echo].numbers]


def limits_by_role(but=()):
    """What a scheduler is asked for, for rules whose wildcard `role` says whose base they load."""
    names = {name for limits in LIMITS.values() for name in limits} - set(but)
    return {name: _limit_of_role(name) for name in sorted(names)}


def _limit_of_role(name):
    def limit(wildcards, attempt):
        value = LIMITS[wildcards.role].get(name)  # what is None isn't asked for
        return value(wildcards, attempt) if callable(value) else value

    return limit


def gpus(role):
    """GPUs of a job that trains a pack, or that evaluates what a target trial has trained, on one where it fits."""
    if STUDY.execution.device != "cuda":
        return 0
    how = getattr(STUDY.execution, role)
    return 1 if getattr(how, "strategy", "ddp") == "ddp" else how.processes


def cores(role):
    """Cores that one trial keeps busy on a node."""
    stage = getattr(STUDY.execution, role)
    return stage.threads * stage.processes


def trial_cores():
    """Cores of a target trial's job. One over several nodes has all of a run that submits no jobs to itself.

    Two of them, side by side on the nodes of one allocation, would each hold GPUs that the other one waits for.
    """
    settings = workflow.resource_settings
    alone = STUDY.execution.target.nodes > 1 and not settings.nodes
    return max(cores("target"), settings.cores or 1) if alone else cores("target")
