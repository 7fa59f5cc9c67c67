localrules:
    transfer,


rule transfer:
    input:
        settings=PATHS.settings("transfer"),
        trials=PATHS.proxy_trials,
        proxy=PATHS.model("proxy"),
        target=PATHS.model("target"),
    output:
        regions=PATHS.regions,
        starts=PATHS.starts,
    log:
        PATHS.log("transfer"),
    conda:
        "../envs/understudy.yaml"
    shell:
        "exec python -m understudy transfer --settings {input.settings:q} --trials {input.trials:q} --proxy-model {input.proxy:q}"
        " --target-model {input.target:q} --regions {output.regions:q} --starts {output.starts:q} --log {log:q}"
