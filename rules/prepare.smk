localrules:
    write_settings,


rule write_settings:
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
        settings=PATHS.settings("model-{role}"),
        manifest=PATHS.manifest,
    output:
        PATHS.model("{role}"),
    log:
        PATHS.log("prepare_model", "{role}"),
    conda:
        "../envs/understudy.yaml"
    threads: lambda wildcards: getattr(STUDY.execution, wildcards.role).threads
    shell:
        "exec python -m understudy prepare-model --settings {input.settings:q} --manifest {input.manifest:q}"
        " --output {output:q} --log {log:q}"


rule prepare_execution:
    input:
        settings=PATHS.settings("execution"),
        proxy=PATHS.model("proxy"),
        target=PATHS.model("target"),
        manifest=PATHS.manifest,
    output:
        PATHS.execution,
    log:
        PATHS.log("prepare_execution"),
    conda:
        "../envs/understudy.yaml"
    resources:
        gpu=max(gpus("proxy"), gpus("target")),
    shell:
        "exec python -m understudy prepare-execution --settings {input.settings:q} --proxy-model {input.proxy:q}"
        " --target-model {input.target:q} --manifest {input.manifest:q} --output {output:q} --log {log:q}"
