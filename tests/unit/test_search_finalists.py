"""Who goes on, and who wins."""

from __future__ import annotations

from pathlib import Path

import pytest

import search_study as made
from understudy.artifacts import Selection, Starts, Winner
from understudy.cli import main
from understudy.errors import CorruptFileError, UnderstudyError, UserError
from understudy.files import read_model, write_json
from understudy.search.finalists import choose_winner, select_finalists
from understudy.trial import TrialRecord, TrialSpec

STUDY = made.config()


@pytest.fixture(scope="module")
def starts() -> Starts:
    return made.transferred(STUDY)[1]


def target(number: int, values: dict[str, object], loss: float | None) -> TrialRecord:
    spec = TrialSpec(
        id=f"t{number:04d}",
        stage="target",
        origin="refined",
        hyperparameters=values,  # type: ignore[arg-type]
        seed=1,
    )
    return made.record(spec, lambda _: loss or 0.0, "diverged" if loss is None else "complete")


def targets(starts: Starts, losses: list[float | None], same: bool = False) -> list[TrialRecord]:
    return [target(i, {**starts.default, "batch_size": 4 if same else 64 + i}, loss) for i, loss in enumerate(losses)]


def test_the_best_distinct_trials_go_on(starts: Starts) -> None:
    records = targets(starts, [2.5, None, 2.2, 2.3, 2.2])
    records.append(target(5, dict(records[2].spec.hyperparameters), 2.2))
    selection = select_finalists(3, starts, records[::-1])
    assert [finalist.trial for finalist in selection.finalists] == [None, "t0002", "t0004", "t0003"]
    assert [finalist.rank for finalist in selection.finalists] == [0, 1, 2, 3]
    assert selection.finalists[0].hyperparameters == starts.default
    assert selection.finalists[0].origin == "default"
    assert selection.finalists[1].objective == 2.2


def test_the_default_is_rank_0_alone(starts: Starts) -> None:
    records = [*targets(starts, [2.5, 2.4]), target(9, dict(starts.default), 2.0)]
    selection = select_finalists(2, starts, records)
    assert [finalist.trial for finalist in selection.finalists] == ["t0009", "t0001", "t0000"]
    assert selection.finalists[0].objective == 2.0


def test_untried_starts_stand_in_for_trials_that_failed(starts: Starts) -> None:
    tried = target(1, dict(starts.starts[1].hyperparameters), None)
    selection = select_finalists(2, starts, [*targets(starts, [2.5]), tried])
    assert [finalist.trial for finalist in selection.finalists] == [None, "t0000", None]
    stand_in = selection.finalists[2]
    assert stand_in.hyperparameters not in (tried.spec.hyperparameters, starts.default)
    assert stand_in.hyperparameters in [start.hyperparameters for start in starts.starts]


def test_a_start_whose_trial_was_skipped_is_untried(starts: Starts) -> None:
    start = next(each.hyperparameters for each in starts.starts if each.hyperparameters != starts.default)
    skipped = made.record(target(1, dict(start), None).spec, status="skipped")
    selection = select_finalists(2, starts, [*targets(starts, [2.5]), skipped])
    assert [finalist.trial for finalist in selection.finalists] == [None, "t0000", None]
    assert selection.finalists[2].hyperparameters == start


def test_too_few_of_everything_is_an_error(starts: Starts) -> None:
    with pytest.raises(UserError, match=r"only 1 of 2 target trials can go on \(1 complete, 1 diverged\)"):
        select_finalists(3, starts.model_copy(update={"starts": ()}), targets(starts, [2.5, None]))


def test_without_a_single_loss_nobody_goes_on(starts: Starts) -> None:
    """What was never tried isn't trained over several seeds at once."""
    with pytest.raises(UserError, match=r"none of the 2 target trials came to a loss \(2 diverged\)"):
        select_finalists(1, starts, targets(starts, [None, None]))


def repeats(selection: Selection, losses: dict[int, list[float | None]]) -> list[TrialRecord]:
    found = []
    for rank, values in losses.items():
        for index, loss in enumerate(values):
            spec = TrialSpec(
                id=f"f{rank}s{index}",
                stage="finalist",
                origin="refined",
                hyperparameters=selection.finalists[rank].hyperparameters,
                seed=index,
            )
            found.append(
                made.record(spec, lambda _, loss=loss: loss or 0.0, "diverged" if loss is None else "complete")
            )  # type: ignore[misc]
    return found


@pytest.fixture(scope="module")
def selection(starts: Starts) -> Selection:
    return select_finalists(2, starts, targets(starts, [2.5, 2.4, 2.3]))


def test_the_lowest_mean_wins(selection: Selection) -> None:
    records = repeats(selection, {0: [2.6, 2.5, 2.7], 1: [2.0, 2.9, 2.9], 2: [2.3, 2.2, 2.4]})
    winner = choose_winner(selection, records[::-1])
    digests = {record.spec.id: record.result.digest for record in records}
    assert winner.rank == 2
    assert winner.hyperparameters == selection.finalists[2].hyperparameters
    assert winner.digests == (digests["f2s1"], digests["f2s0"], digests["f2s2"])
    assert winner.default_digests == (digests["f0s1"], digests["f0s0"], digests["f0s2"])
    assert winner.scores[2].objectives == (2.3, 2.2, 2.4)
    assert winner.scores[2].mean == pytest.approx(2.3)
    assert winner.scores[2].standard_deviation == pytest.approx(0.1)


def test_one_failed_seed_loses(selection: Selection) -> None:
    records = repeats(selection, {0: [2.6, 2.5, 2.7], 1: [1.0, None, 1.0], 2: [2.6, 2.5, 2.7]})
    winner = choose_winner(selection, records)
    assert winner.rank == 0  # equal to rank 2: the default stays
    assert winner.scores[1].objectives == (1.0, None, 1.0)
    assert winner.scores[1].mean == 1.0


def test_no_whole_finalist_is_an_error(selection: Selection) -> None:
    with pytest.raises(UnderstudyError, match="3 diverged"):
        choose_winner(selection, repeats(selection, {0: [None], 1: [None], 2: [None]}))


def test_a_foreign_result_is_refused(selection: Selection) -> None:
    records = repeats(selection, {0: [2.6], 1: [2.4], 2: [2.5]})
    swapped = records[1].model_copy(update={"spec": records[1].spec.model_copy(update={"id": "f2s0"})})
    with pytest.raises(CorruptFileError, match="f2s0"):
        choose_winner(selection, [records[0], swapped])


def test_the_commands(tmp_path: Path, starts: Starts, selection: Selection) -> None:
    write_json(tmp_path / "finalists.json", made.section(STUDY, "finalists"))
    write_json(tmp_path / "starts.json", starts)
    files = []
    for record in [*targets(starts, [2.5, 2.4, 2.3]), *repeats(selection, {0: [2.6] * 3, 1: [2.4] * 3, 2: [2.5] * 3})]:
        files.append(tmp_path / f"{record.spec.id}.json")
        write_json(files[-1], record)
    chosen, won = str(tmp_path / "selection.json"), str(tmp_path / "winner.json")
    words = ["--settings", str(tmp_path / "finalists.json"), "--starts", str(tmp_path / "starts.json")]
    assert main(["select-finalists", *words, "--trials", *map(str, files[:3]), "--output", chosen]) == 0
    assert read_model(tmp_path / "selection.json", Selection) == selection
    assert main(["choose-winner", "--selection", chosen, "--results", *map(str, files[3:]), "--output", won]) == 0
    assert read_model(tmp_path / "winner.json", Winner).rank == 1
