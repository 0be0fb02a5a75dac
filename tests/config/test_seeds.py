"""Seeds are pinned: recorded trials can be repeated."""

from __future__ import annotations

from study.config.seeds import derive_seeds, find_seed_role, list_seed_runs


def test_seeds_differ_by_role_and_replicate_and_zero_is_a_seed() -> None:
    seeds = [tuple(derive_seeds(replicate).values()) for replicate in range(20)]
    assert len({seed for row in seeds for seed in row}) == 60
    assert derive_seeds(0) == {
        "init": 6227323262129794652,
        "data": 2473657950632210693,
        "split": 4719946621281231735,
    }


def test_a_seed_run_has_one_seed_of_another_replicate_and_the_others_of_the_first() -> None:
    runs = list_seed_runs(["init", "split"], 3)
    assert [find_seed_role(run) for run in runs] == ["init", "init", "split", "split"]
    assert [find_seed_role(replicate) for replicate in (0, 1, 999)] == [None, None, None]
    first, second = derive_seeds(0), derive_seeds(2)
    assert derive_seeds(runs[1]) == {**first, "init": second["init"]}
    assert derive_seeds(runs[3]) == {**first, "split": second["split"]}
    assert list_seed_runs([], 3) == list_seed_runs(["data"], 1) == []
