localrules:
    plan_pack,
    plan_echo,
    collect_proxy,


rule plan_pack:
    input:
        settings=PATHS.settings("search"),
        model=PATHS.model("proxy"),
        execution=PATHS.execution("proxy"),
        target=checked_target(),
    output:
        PATHS.pack_specs("{pack}"),
    log:
        PATHS.log("plan_pack", "{pack}"),
    conda:
        "../envs/understudy.yaml"
    params:
        first=lambda wildcards: PROXY_PACKS[wildcards.pack].first,
        block=lambda wildcards: PROXY_PACKS[wildcards.pack].block,
        index=lambda wildcards: PROXY_PACKS[wildcards.pack].index,
        size=STUDY.proxy.pack_size,
    shell:
        "exec python -m understudy plan-pack --settings {input.settings:q} --model {input.model:q}"
        " --execution {input.execution:q} --pack {wildcards.pack} --first {params.first} --block {params.block}"
        " --index {params.index} --size {params.size} --output {output:q} --log {log:q}"


rule plan_echo:
    input:
        settings=PATHS.settings("search"),
        model=PATHS.model("proxy"),
        execution=PATHS.execution("proxy"),
        regions=PATHS.regions,
        proposals=proposals_of_echo,
    output:
        PATHS.pack_specs("{echo}"),
    log:
        PATHS.log("plan_echo", "{echo}"),
    conda:
        "../envs/understudy.yaml"
    shell:
        "exec python -m understudy plan-echo --settings {input.settings:q} --model {input.model:q}"
        " --execution {input.execution:q} --regions {input.regions:q} --pack {wildcards.echo}"
        " --proposals {input.proposals:q} --output {output:q} --log {log:q}"


rule train_pack:
    input:
        **inputs_of_training("proxy"),
        specs=PATHS.pack_specs("{pack}"),
    output:
        PATHS.pack_results("{pack}"),
    log:
        PATHS.log("train_pack", "{pack}"),
    conda:
        "../envs/understudy.yaml"
    threads: cores("proxy")
    resources:
        **LIMITS["proxy"],
        gpu=gpus("proxy"),
    params:
        running=PATHS.settings("running"),
        store=PATHS.store,
        progress=PATHS.progress,
    shell:
        "exec python -m understudy train-pack --specs {input.specs:q} --model {input.model:q} --manifest {input.manifest:q}"
        " --train {input.train:q} --validation {input.validation:q} --execution {input.execution:q}"
        " --training {input.training:q} --running {params.running:q} --store {params.store:q} --progress {params.progress:q}"
        " --output {output:q} --log {log:q}"


use rule train_pack as train_echo with:
    input:
        **inputs_of_training("proxy"),
        specs=PATHS.pack_specs("{echo}"),
    output:
        PATHS.pack_results("{echo}"),
    log:
        PATHS.log("train_echo", "{echo}"),


rule collect_proxy:
    input:
        all_proxy_results(),
    output:
        PATHS.proxy_trials,
    log:
        PATHS.log("collect_proxy"),
    conda:
        "../envs/understudy.yaml"
    params:
        packs=lambda _: braced(all_proxy_results()),
    shell:
        "exec python -m understudy collect-proxy --packs {params.packs} --output {output:q} --log {log:q}"
