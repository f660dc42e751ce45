"""What `tokenpool reproduce` measures."""

import pytest

import tokenpool as tp
from tokenpool.measure import accuracy


def test_settings_are_each_once_and_seeds_only_where_something_is_drawn():
    wanted = accuracy.settings(seeds=5)
    assert len(wanted) == len(set(wanted))
    assert {s.seed for s in wanted if s.method == "top_k"} == {0}
    for init in ("random", "k_means_plus_plus"):
        assert {s.seed for s in wanted if s.init == init} == set(range(5))
    assert {s.method for s in wanted} == {"plain", *accuracy.PAPERS}
    assert {s.method for s in accuracy.settings(figures=accuracy.FIGURES)} == {"plain", *tp.method_names()}
    assert {s.init for s in wanted if s.method == "wk_medoids"} == set(tp.init_names())
    with pytest.raises(ValueError, match=r"Unknown figure '5c'. Did you mean"):
        accuracy.settings(figures=["5c"])
    with pytest.raises(ValueError, match=r"A saving of 1.2"):
        accuracy.settings(budgets=[1.2])
    with pytest.raises(ValueError, match="0 seeds"):
        accuracy.settings(seeds=0)
