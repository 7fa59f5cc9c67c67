localrules:
    write_settings,
    prepare_data,


# What is fetched from the hub is fetched here: a cluster's nodes may have no network.
if any(getattr(STUDY.models, role).pretrain is None for role in ("proxy", "target")):

    localrules:
        prepare_model,


rule write_settings:
    input:
        mended,
    output:
        PATHS.settings("{section}"),
    log:
        PATHS.log("write_settings", "{section}"),
    conda:
        "../envs/understudy.yaml"
    params:
        content=lambda wildcards: SETTINGS[wildcards.section].model_dump_json(),
    shell:
        "exec python -m understudy write-settings --content {params.content:q} --output {output:q} --log {log:q}"


rule prepare_data:
    input:
        settings=PATHS.settings("data"),
    output:
        train=PATHS.data("train"),
        validation=PATHS.data("validation"),
        test=PATHS.data("test"),
        manifest=PATHS.manifest,
    log:
        PATHS.log("prepare_data"),
    conda:
        "../envs/understudy.yaml"
    shell:
        "exec python -m understudy prepare-data --settings {input.settings:q} --train {output.train:q}"
        " --validation {output.validation:q} --test {output.test:q} --manifest {output.manifest:q} --log {log:q}"


rule prepare_model:
    input:
        own_checkpoint,
        settings=PATHS.settings("model-{role}"),
        manifest=PATHS.manifest,
    output:
        PATHS.model("{role}"),
    log:
        PATHS.log("prepare_model", "{role}"),
    priority: 1  # whatever is wrong with a model or a device is to show before anything trains
    conda:
        "../envs/understudy.yaml"
    threads: lambda wildcards: getattr(STUDY.execution, wildcards.role).threads
    resources:
        **limits_by_role(but=("gpu_model", "cpus_per_task")),  # no GPU: SLURM's plugin would ask for one of that model
        cpus_per_task=lambda wildcards: getattr(STUDY.execution, wildcards.role).threads,
    shell:
        "exec python -m understudy prepare-model --settings {input.settings:q} --manifest {input.manifest:q}"
        " --output {output:q} --log {log:q}"


rule prepare_execution:
    input:
        settings=PATHS.settings("execution"),
        model=PATHS.model("{role}"),
        manifest=PATHS.manifest,
    output:
        PATHS.execution("{role}"),
    log:
        PATHS.log("prepare_execution", "{role}"),
    priority: 1
    conda:
        "../envs/understudy.yaml"
    resources:
        **limits_by_role(but=("mem_mb", "runtime", "cpus_per_task")),
        **resources.look_limits(STUDY),
    params:
        progress=PATHS.progress,
    shell:
        "exec python -m understudy prepare-execution --settings {input.settings:q} --model {input.model:q}"
        " --manifest {input.manifest:q} --progress {params.progress:q} --output {output:q} --log {log:q}"
