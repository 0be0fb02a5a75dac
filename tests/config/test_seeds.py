"""Seeds are pinned: recorded trials can be repeated."""

from __future__ import annotations

from study.config.seeds import derive_seeds


def test_seeds_differ_by_role_and_replicate_and_zero_is_a_seed() -> None:
    seeds = [tuple(derive_seeds(replicate).values()) for replicate in range(20)]
    assert len({seed for row in seeds for seed in row}) == 60
    assert derive_seeds(0) == {
        "init": 6227323262129794652,
        "data": 2473657950632210693,
        "split": 4719946621281231735,
    }
