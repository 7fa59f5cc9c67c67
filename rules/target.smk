localrules:
    propose_truncated,
    propose,
    select_finalists,
    choose_winner,


rule propose:
    input:
        before_proposal,
        settings=PATHS.settings("target"),
        regions=PATHS.regions,
        starts=PATHS.starts,
        truncated=all_truncated_results(),
    output:
        PATHS.proposal("{number}"),
    log:
        PATHS.log("propose", "{number}"),
    conda:
        "../envs/understudy.yaml"
    params:
        stage="target",
        trials=PATHS.target_trials,
    shell:
        "exec python -m understudy propose --settings {input.settings:q} --stage {params.stage} --number {wildcards.number}"
        " --regions {input.regions:q} --starts {input.starts:q} --trials-dir {params.trials:q}"
        " --truncated {input.truncated:q} --output {output:q} --log {log:q}"


use rule propose as propose_truncated with:
    input:
        before_truncated_proposal,
        settings=PATHS.settings("target"),
        regions=PATHS.regions,
        starts=PATHS.starts,
        truncated=[],
    output:
        PATHS.truncated_proposal("{number}"),
    log:
        PATHS.log("propose_truncated", "{number}"),
    params:
        stage="truncated",
        trials=PATHS.truncated_trials,


rule train_target:
    input:
        **inputs_of_training("target"),
        proposal=PATHS.proposal("{number}"),
    output:
        PATHS.target_result("{number}"),
    log:
        PATHS.log("train_target", "{number}"),
    conda:
        "../envs/understudy.yaml"
    threads: trial_cores()
    resources:
        **TRIAL_LIMITS,
    params:
        running=PATHS.settings("running"),
        store=PATHS.store,
        progress=PATHS.progress,
    shell:
        "exec python -m understudy train-target --proposal {input.proposal:q} --model {input.model:q} --manifest {input.manifest:q}"
        " --train {input.train:q} --validation {input.validation:q} --execution {input.execution:q}"
        " --training {input.training:q} --running {params.running:q} --store {params.store:q} --progress {params.progress:q}"
        " --output {output:q} --log {log:q}"


use rule train_target as train_truncated with:
    input:
        **inputs_of_training("target"),
        proposal=PATHS.truncated_proposal("{number}"),
    output:
        PATHS.truncated_result("{number}"),
    log:
        PATHS.log("train_truncated", "{number}"),


rule select_finalists:
    input:
        settings=PATHS.settings("finalists"),
        starts=PATHS.starts,
        trials=all_target_results(),
    output:
        PATHS.selection,
    log:
        PATHS.log("select_finalists"),
    conda:
        "../envs/understudy.yaml"
    params:
        trials=lambda _: braced(all_target_results()),
    shell:
        "exec python -m understudy select-finalists --settings {input.settings:q} --starts {input.starts:q}"
        " --trials {params.trials} --output {output:q} --log {log:q}"


rule train_finalist:
    input:
        **inputs_of_training("target"),
        settings=PATHS.settings("finalists"),
        selection=PATHS.selection,
    output:
        PATHS.finalist_result("{rank}", "{seed}"),
    log:
        PATHS.log("train_finalist", "{rank}", "{seed}"),
    conda:
        "../envs/understudy.yaml"
    threads: trial_cores()
    resources:
        **TRIAL_LIMITS,
    params:
        running=PATHS.settings("running"),
        store=PATHS.store,
        progress=PATHS.progress,
    shell:
        "exec python -m understudy train-finalist --selection {input.selection:q} --settings {input.settings:q}"
        " --rank {wildcards.rank} --seed-index {wildcards.seed} --model {input.model:q} --manifest {input.manifest:q}"
        " --train {input.train:q} --validation {input.validation:q} --execution {input.execution:q}"
        " --training {input.training:q} --running {params.running:q} --store {params.store:q} --progress {params.progress:q}"
        " --output {output:q} --log {log:q}"


rule choose_winner:
    input:
        selection=PATHS.selection,
        results=all_finalist_results(),
    output:
        PATHS.winner,
    log:
        PATHS.log("choose_winner"),
    conda:
        "../envs/understudy.yaml"
    shell:
        "exec python -m understudy choose-winner --selection {input.selection:q} --results {input.results:q}"
        " --output {output:q} --log {log:q}"


rule decode_search:
    input:
        settings=PATHS.settings("decode"),
        winner=PATHS.winner,
        results=all_finalist_results(),  # whose weights it reads
        model=PATHS.model("target"),
        manifest=PATHS.manifest,
        validation=PATHS.data("validation"),
        execution=PATHS.execution("target"),
    output:
        PATHS.decode,
    log:
        PATHS.log("decode_search"),
    conda:
        "../envs/understudy.yaml"
    threads: cores("target")
    resources:
        **LIMITS["target"],
        gpu=gpus("target"),
    params:
        running=PATHS.settings("running"),
        store=PATHS.store,
    shell:
        "exec python -m understudy decode-search --settings {input.settings:q} --winner {input.winner:q} --model {input.model:q}"
        " --manifest {input.manifest:q} --validation {input.validation:q} --execution {input.execution:q}"
        " --running {params.running:q} --store {params.store:q} --output {output:q} --log {log:q}"


rule test:
    input:
        settings=PATHS.settings("test"),
        winner=PATHS.winner,
        results=all_finalist_results(),  # whose weights it reads
        model=PATHS.model("target"),
        manifest=PATHS.manifest,
        validation=PATHS.data("validation"),
        test=PATHS.data("test"),
        execution=PATHS.execution("target"),
    output:
        PATHS.test,
    log:
        PATHS.log("test"),
    conda:
        "../envs/understudy.yaml"
    threads: cores("target")
    resources:
        **LIMITS["target"],
        gpu=gpus("target"),
    params:
        running=PATHS.settings("running"),
        store=PATHS.store,
    shell:
        "exec python -m understudy test --settings {input.settings:q} --winner {input.winner:q} --model {input.model:q}"
        " --manifest {input.manifest:q} --validation {input.validation:q} --test {input.test:q}"
        " --execution {input.execution:q} --running {params.running:q} --store {params.store:q}"
        " --output {output:q} --log {log:q}"
