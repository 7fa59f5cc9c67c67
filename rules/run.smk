# What a run's main process does before, at the beginning of, and after a study's jobs.

import os
from contextlib import suppress
from functools import cache

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from understudy import abreast, chatter, cluster, cluster_watch, devices, disk, lock, mending, progress
from understudy.data.pin import check_interpreter
from understudy.errors import StorageError
from understudy.models.folder import require as require_model


def mended(wildcards):
    """No input at all, but the place where files are mended: for a real run, before Snakemake looks at any of them.

    Settings are part of every study, and input functions are the first code to be called once it is known what kind of
    run it is. A dry run mends nothing and says what the study is.
    """
    if workflow.executor_plugin and workflow.is_main_process and not workflow.touch:
        if workflow.dryrun:
            show_plan()
        else:
            mend_study()
    return []


@cache
def show_plan():
    """Show the study as a whole in a dry run, and its table of jobs; refuse what the first command would refuse."""
    if STUDY.data.files is not None and not PATHS.manifest.exists():
        require_data()
    require_models()
    if changed := [name for name in SETTINGS if is_changed(name)]:
        logger.warning(
            f"understudy: the config or the data have changed since the last run ({', '.join(changed)}); a run does "
            "anew what follows from that, also where this dry run doesn't list it, as in a copy of a study"
        )
    room = run_room()
    logger.info(graph.plan(STUDY, abreast.side_by_side(STUDY, room)["target"]))
    for line in [*abreast.narrow(STUDY, room), *abreast.idle(STUDY), *(resources.unasked(STUDY) if room.jobs else [])]:
        logger.warning(line)
    try:
        if not all(PATHS.execution(role).exists() for role in LIMITS) or is_changed("execution"):
            require_gpus([gpus("proxy"), gpus("target"), TRIAL_LIMITS.get("gpu", 0)])
        require_nodes()
    except UnderstudyError as error:  # the plan may be meant for another machine
        logger.warning(f"understudy: {error}")
    chatter.show_table(logger)


def is_changed(*sections):
    """Whether these sections, by default all, differ from those of the last run."""
    with suppress(UnderstudyError):  # a real run sets broken files aside
        return mending.is_changed(PATHS, {name: SETTINGS[name] for name in sections or SETTINGS})
    return False


@cache
def run_room():
    """What this run may use. GPUs are those of the `gpu` resource, else of this machine."""
    jobs = workflow.resource_settings.nodes
    if jobs:
        return abreast.Room(cores=None, jobs=jobs)
    gpus = None
    if STUDY.execution.device != "cpu":
        asked = workflow.global_resources.get("gpu")
        gpus = len(devices.visible(by_torch=False)) if asked is None or asked.value is None else asked.value
    return abreast.Room(workflow.resource_settings.cores or 1, gpus or None)


@cache
def mend_study():
    """Say what was mended, and what stands in the way: Snakemake passes over what is raised in an input function."""
    try:
        lock.acquire(PATHS.lock)
        disk.require_room(PATHS.root)
        for note in mending.mend(PATHS, SETTINGS):
            logger.warning(f"understudy: {note}")
    except StorageError as error:
        logger.error(f"understudy: {error}")
    except UnderstudyError as error:  # another run, which is refused when this one begins
        logger.debug(str(error))


def begin_run():
    """Refuse a second run, a full disk and a foreign interpreter; clear up after a dead run; note what there is to do.

    Snakemake calls this in its main process only.
    """
    try:
        lock.acquire(PATHS.lock)
        disk.require_room(PATHS.root)
        mending.keep_settings(PATHS, SETTINGS)
        if not workflow.deployment_settings.deployment_method:  # else jobs have an interpreter of their own
            check_interpreter(PATHS.root)
        jobs = list(workflow.dag.needrun_jobs())
        if any(job.rule.name == "prepare_execution" for job in jobs):  # later runs may train nothing at all
            require_gpus(job.resources.get("gpu", 0) for job in jobs)
        if any(job.resources.get("nodes", 1) > 1 for job in jobs):
            require_nodes()
        cluster.show_all_jobs()
        cluster.clear(PATHS, STUDY.resources.left_behind, logger.warning)
    except UnderstudyError as error:
        raise WorkflowError(str(error)) from None
    room = run_room()
    side_by_side = abreast.side_by_side(STUDY, room)
    progress.start(
        PATHS.progress,
        graph.totals(STUDY),
        side_by_side["target"],
        side_by_side,
        abreast.costs(STUDY, room),
        unfinished(),
    )
    answer_before()
    chatter.hush(logger)
    if room.jobs:
        cluster.mark_jobs(
            workflow.scheduler._executor, PATHS, own_logs=not getattr(workflow.executor_settings, "logdir", None)
        )
        cluster_watch.watch_jobs(workflow.scheduler._executor, PATHS, logger.warning)
        chatter.tell_failures(logger)
        progress.follow(PATHS.progress)
        notes = [*resources.unasked(STUDY), *cluster.unwarned(workflow.scheduler._executor, jobs)]
    else:
        notes = [
            *resources.throttled(room.cores, hardware.cores()),
            *resources.crowded(STUDY, room.cores),
            *abreast.narrow(STUDY, room),
        ]
    for line in [*notes, *abreast.idle(STUDY)]:
        logger.warning(line)


def require_gpus(counts):
    """Refuse jobs that need so many GPUs where they run on this machine and it has fewer."""
    elsewhere = run_room().jobs or workflow.deployment_settings.deployment_method
    if not elsewhere and not workflow.touch:
        devices.require(max(counts))


def require_nodes():
    """Refuse trials over several nodes where this run neither submits jobs nor is one with as many."""
    if not run_room().jobs and not workflow.touch:
        resources.require_scheduler(STUDY, os.environ.get("SLURM_JOB_NUM_NODES"))


def require_data():
    """End with what `prepare_data` would say of a missing file."""
    from understudy.data.user_files import require

    try:
        require(STUDY.data.files)
    except UnderstudyError as error:
        refuse(error)


def require_models():
    """End with what `prepare_model` would say of a missing folder, where it has to run."""
    for role in ("proxy", "target"):
        name, section = getattr(STUDY.models, role).model_name_or_path, f"model-{role}"
        if name and (not PATHS.model(role).exists() or mending.is_changed(PATHS, {section: SETTINGS[section]})):
            try:
                require_model(name)
            except UnderstudyError as error:
                refuse(error)


def answer():
    """When the headline and the report were written, as far as they are there."""
    return [path.stat().st_mtime_ns for path in (PATHS.headline, PATHS.report) if path.exists()]


@cache
def answer_before():
    """The same when this run began."""
    return answer()


def unfinished():
    """Files of results that this run makes anew."""
    results = (
        PATHS.pack_results("*"),
        PATHS.target_result("*"),
        PATHS.truncated_result("*"),
        PATHS.finalist_result("*", "*"),
    )
    there = {path for each in results for path in PATHS.root.glob(str(each.relative_to(PATHS.root)))}
    return (
        set() if workflow.touch else there & {Path(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    )


def note_end(through):
    """For `understudy status`. A full disk has been told, or will be."""
    with suppress(UnderstudyError):
        progress.end(PATHS.progress, through)


def show_headline():
    """Print what the study found, where this run has written it: it may have been asked for less."""
    note_end(through=True)
    if PATHS.headline.exists() and answer() != answer_before():
        print("", PATHS.headline.read_text(encoding="utf-8"), sep="\n", flush=True)


def explain_failure():
    """Say what is safe and what to do."""
    note_end(through=False)
    if chatter.interrupted():
        print("\nInterrupted. Nothing that has finished is lost: the same command goes on.", flush=True)
        return
    print(
        f"\nThe study stopped before its end. Messages above and in {PATHS.root / 'logs'} say why."
        "\nNothing that has finished is lost: mend the cause and start again with the same command.",
        flush=True,
    )
