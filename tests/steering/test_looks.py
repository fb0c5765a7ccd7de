"""Arms are told apart in every figure, with colours and without, on light and on dark grounds."""

from __future__ import annotations

from contrast import contrast

from app import theme
from steering.compare import ARMS
from steering.looks import LOOKS, looks


def test_every_known_arm_is_seen_on_both_grounds_and_has_a_mark_of_its_own() -> None:
    assert set(LOOKS) == set(ARMS)
    assert len({look.symbol for look in LOOKS.values()}) == len(LOOKS)
    for scheme in theme.SCHEMES.values():
        for colour in scheme.looks:
            assert contrast(colour, scheme.surface) >= 3, f"{colour}: WCAG 1.4.11, graphics at least 3:1"


def test_no_two_of_many_arms_look_the_same() -> None:
    arms = [*ARMS, *(f"mine-{i}" for i in range(60))]
    found = looks(arms)
    assert set(found) == set(arms)
    for ground in ("light", "dark"):
        assert len({(getattr(look, ground), look.symbol) for look in found.values()}) == len(arms)
    assert all(found[arm] == LOOKS[arm] for arm in ARMS)
    assert looks(["mine"])["mine"].light != LOOKS["base"].light  # grey is the base, be it there or not
    assert looks(["mine", "base", "aligned"]) == looks(["aligned", "base", "mine"])
