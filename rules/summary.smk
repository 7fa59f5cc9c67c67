localrules:
    summarise,
    write_report,


rule summarise:
    input:
        settings=PATHS.settings("summary"),
        packs=all_proxy_results() + all_echo_results(),
        targets=all_truncated_results() + all_target_results(),
        finalists=all_finalist_results(),
        proposals=all_proposals(),
        regions=PATHS.regions,
        starts=PATHS.starts,
        winner=PATHS.winner,
        test=PATHS.test,
        decode=PATHS.decode,
        models=[PATHS.model("proxy"), PATHS.model("target")],
        execution=[PATHS.execution("proxy"), PATHS.execution("target")],
    output:
        expand(
            PATHS.table("{name}"),
            name=["trials", "costs", "provenance", "curves"],
        ),
        expand(
            PATHS.table("{name}", "csv"),
            name=[
                "trials",
                "importance",
                "agreement",
                "cost_per_stage",
                "early_stopping",
            ],
        ),
        report(
            PATHS.table("leaderboard", "csv"),
            caption="../workflow/report/leaderboard.rst",
            category="Tables",
        ),
        report(
            PATHS.figure("progress"),
            caption="../workflow/report/progress.rst",
            category="Figures",
        ),
        report(
            PATHS.figure("importance"),
            caption="../workflow/report/importance.rst",
            category="Figures",
        ),
        report(
            PATHS.figure("agreement"),
            caption="../workflow/report/agreement.rst",
            category="Figures",
        ),
        report(
            PATHS.figure("slices"),
            caption="../workflow/report/slices.rst",
            category="Figures",
        ),
        report(
            PATHS.figure("curves"),
            caption="../workflow/report/curves.rst",
            category="Figures",
        ),
        headline=PATHS.headline,
    log:
        PATHS.log("summarise"),
    conda:
        "../envs/understudy.yaml"
    params:
        packs=lambda _: braced(all_proxy_results() + all_echo_results()),
        targets=lambda _: braced(all_truncated_results() + all_target_results()),
        proposals=lambda _: braced(all_proposals()),
        folder=PATHS.headline.parent,
    shell:
        "exec python -m understudy summarise --settings {input.settings:q} --packs {params.packs} --targets {params.targets}"
        " --finalists {input.finalists:q} --proposals {params.proposals} --regions {input.regions:q}"
        " --starts {input.starts:q} --winner {input.winner:q} --test {input.test:q} --decode {input.decode:q}"
        " --models {input.models:q} --execution {input.execution:q} --output {params.folder:q} --log {log:q}"


rule write_report:
    input:
        settings=PATHS.settings("summary"),
        results=all_finalist_results(),  # whose weights it copies
        headline=PATHS.headline,
        manifest=PATHS.manifest,
        execution=[PATHS.execution("proxy"), PATHS.execution("target")],
        models=[PATHS.model("proxy"), PATHS.model("target")],
        regions=PATHS.regions,
        winner=PATHS.winner,
        test=PATHS.test,
        decode=PATHS.decode,
    output:
        report=PATHS.report,
        best=PATHS.best_config,
    log:
        PATHS.log("write_report"),
    conda:
        "../envs/understudy.yaml"
    params:
        study=PATHS.settings("study"),
        summary=PATHS.headline.parent,
        best=PATHS.best_config.parent,
        store=PATHS.store,
    shell:
        "exec python -m understudy report --settings {input.settings:q} --summary {params.summary:q} --manifest {input.manifest:q}"
        " --execution {input.execution:q} --models {input.models:q} --regions {input.regions:q}"
        " --winner {input.winner:q} --test {input.test:q} --decode {input.decode:q} --store {params.store:q}"
        " --config {params.study:q} --report {output.report:q} --best {params.best:q} --log {log:q}"
