"""Worked examples whose results are printed in books, papers and manuals."""

import numpy as np
import pytest

from lit_fedbabu.reporting import statistics

SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
"""Student 1908: hours of sleep gained by two drugs; R has it as ``sleep``."""
MAIZE = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
"""Darwin's maize: differences of height, crossed minus self-fertilized plants."""
DEMSAR = [
    [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1],
    [2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3], [3, 1, 4, 2],
]  # fmt: skip
"""Demšar 2006, Table 6: ranks of four variants of C4.5 on 14 datasets."""


def test_an_interval_over_seeds_is_students():
    found = statistics.over_seeds(SLEEP[0])
    assert (found.count, round(found.mean, 3), round(found.std, 5)) == (10, 0.75, 1.78901)
    assert found.interval == pytest.approx((-0.5297804, 2.0297804), abs=1e-6)  # R: t.test(extra[1:10])


def test_one_seed_has_neither_std_nor_interval():
    found = statistics.over_seeds([89.2])
    assert (found.count, found.mean, found.std, found.interval) == (1, 89.2, None, None)
    assert statistics.plus_minus(found) == "89.20"
    assert statistics.plus_minus(statistics.over_seeds([89, 91])) == "90.00 ± 1.41"


def test_equal_seeds_have_an_interval_of_no_width():
    assert statistics.over_seeds([99.5] * 3).interval == (99.5, 99.5)


def test_a_paired_difference_is_students_sleep():
    found = statistics.difference(SLEEP[1], SLEEP[0])
    assert found.over.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)  # R: t.test(..., paired = TRUE)
    assert found.over.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert (found.ahead, found.level, found.over.count) == (9, 1, 10)


def test_wilcoxons_test_is_darwins_maize():
    found = statistics.difference(MAIZE, [0] * 15)
    assert found.p_signed_rank == pytest.approx(0.041259765625)
    assert found.p == pytest.approx(0.04970, abs=1e-5)  # Fisher 1935
    assert statistics.difference(MAIZE[:5], [0] * 5).p_signed_rank == pytest.approx(2 / 2**5)
    assert statistics.difference(MAIZE[:4], [0] * 4).p_signed_rank is None, "four seeds are too few"


@pytest.mark.parametrize("shift", [0, 0.3])
def test_the_same_difference_in_every_seed_has_no_p(shift):
    found = statistics.difference([value + shift for value in SLEEP[0]], SLEEP[0])
    assert (found.p, found.p_signed_rank) == (None, None)
    assert (found.ahead, found.level) == ((10, 0) if shift else (0, 10))


def test_rounding_is_no_lead():
    found = statistics.difference([0.1 + 0.2, 1.0], [0.3, 2.0])
    assert (found.ahead, found.level) == (0, 1)


def test_holms_correction_is_rs():
    assert statistics.holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1, 1]  # R: p.adjust(..., "holm")


def test_a_bootstrap_over_clients_is_paired_and_repeats():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 20, 400)  # some clients are hard for every method
    first, second = hard + rng.normal(1, 2, 400), hard
    interval = statistics.over_clients(first, second)
    gain = first - second
    half = 1.96 * gain.std() / 20
    assert interval == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.02)
    assert statistics.over_clients(first, second) == interval
    assert statistics.over_clients(second, second) == (0, 0)
    assert statistics.over_clients([1.0], [0.5]) is None, "one client says nothing about others"


def test_ranks_are_demsars():
    found = statistics.ranks(-np.array(DEMSAR))
    assert found.average == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    untied = [row for row in DEMSAR if len(set(row)) == 4]
    mean, count, methods = np.mean(untied, axis=0), len(untied), 4
    by_hand = 12 * count / (methods * (methods + 1)) * (sum(mean**2) - methods * (methods + 1) ** 2 / 4)
    assert statistics.ranks(-np.array(untied)).statistic == pytest.approx(by_hand)  # Demšar 2006, Section 3.2.2


@pytest.mark.parametrize(("settings", "methods"), [(4, 3), (5, 2)])
def test_few_settings_or_methods_have_no_ranks(settings, methods):
    assert statistics.ranks(np.random.default_rng(0).random((settings, methods))) is None


def test_ranks_of_equal_methods_say_that_nothing_differs():
    found = statistics.ranks(np.ones((5, 3)))
    assert (found.average.tolist(), found.statistic, found.p) == ([2, 2, 2], 0, 1)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([90], [89.5], "A is ahead of B in 1 of 1 seeds, by 0.50 points; one seed gives no interval"),
        ([90], [89.995], "A is ahead of B in 1 of 1 seeds, by less than 0.01 points; one seed gives no interval"),
        ([89], [90], "A is ahead of B in 0 of 1 seeds, behind by 1.00 points; one seed gives no interval"),
        ([90], [90], "A is ahead of B in 0 of 1 seeds, and level in 1; one seed gives no interval"),
        (
            [90, 91, 92], [89, 90, 91],
            "A is ahead of B in 3 of 3 seeds, by 1.00 points on average; the difference is the same in every seed",
        ),
        (
            [90, 91], [90, 91],
            "A is ahead of B in 0 of 2 seeds, and level in 2; the difference is the same in every seed",
        ),
        (
            [90, 91, 93], [89, 90, 91],
            ("A is ahead of B in 3 of 3 seeds, by 1.33 points on average (95 % interval -0.10 to 2.77, p = 0.057,"
             " corrected p = 0.114)"),
        ),
    ],
)  # fmt: skip
def test_words_say_what_the_numbers_allow(first, second, words):
    found = statistics.difference(first, second)
    assert statistics.in_words("A", "B", found, None if found.p is None else 2 * found.p) == words
    assert "better" not in words


def test_small_p_are_not_zero():
    assert [statistics.shown_p(p) for p in (None, 0.0004, 0.0314, 1.0)] == ["", "<0.001", "0.031", "1.000"]
