from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.inspection.turns import FEW, TURN_S, Turns


class Folders:
    """Files that wait by folder, claimed by `turns` one image every `image_s`."""

    def __init__(self, image_s: float = 0.001, images: int = 16, **waiting: int) -> None:
        self.waiting = Counter(waiting)
        self.turns = Turns(
            lambda folder: self.waiting[folder],
        )
        self.now, self._image_s, self._images = 0.0, image_s, images

    def claim(self) -> str | None:
        """Claim one image and return its folder."""
        there = {folder for folder, count in self.waiting.items() if count}
        self.turns.update(there)
        folder = self.turns.next(there, self.now, self._images)
        if folder is not None:
            assert self.turns.left(folder) > 0
            self.turns.took(folder)
            self.waiting[folder] -= 1
            self.now += self._image_s
        return folder

    def claim_many(self, images: int) -> str:
        return "".join(self.claim() or "-" for _ in range(images))


def test_folders_take_turns_of_so_many_images() -> None:
    folders = Folders(images=3, a=100, b=100)
    assert folders.claim_many(12) in ("aaabbbaaabbb", "bbbaaabbbaaa")


def test_one_that_comes_with_few_goes_first_and_does_not_end_the_turn() -> None:
    folders = Folders(images=64, a=1000)
    folders.claim_many(70)
    folders.waiting["b"] = 3
    assert folders.claim_many(5) == "bbbaa"


def test_one_that_comes_with_many_waits_for_the_end_of_the_turn() -> None:
    folders = Folders(images=64, a=1000)
    folders.claim_many(70)
    folders.waiting["b"] = 1000
    assert folders.claim_many(58 + 64) == "a" * 58 + "b" * 64


def test_of_many_that_come_at_once_the_one_with_the_fewest_is_first() -> None:
    folders = Folders(**{f"m{number}": 1000 for number in range(50)}, few=5)
    assert [folders.claim() for _ in range(5)] == ["few"] * 5


def test_turn_ends_in_time_on_a_slow_machine() -> None:
    folders = Folders(image_s=0.5, images=64, a=1000, b=1000)
    first = folders.claim()
    claims = folders.claim_many(int(TURN_S / 0.5) + 1)
    assert claims[-1] != first


def test_one_that_had_nothing_for_long_has_no_more_than_its_share_afterwards() -> None:
    folders = Folders(images=4, a=10_000)
    folders.claim_many(1000)
    folders.waiting["b"] = 10_000
    claims = folders.claim_many(80)
    assert 36 <= claims.count("b") <= 44


def test_few_that_come_again_and_again_do_not_keep_another_waiting() -> None:
    folders = Folders(images=4, a=10_000)
    claims = ""
    for _ in range(100):
        folders.waiting["b"] += FEW // 2
        claims += folders.claim_many(FEW // 2)
    assert claims.count("a") >= 300


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 200), min_size=1), st.integers(1, 64))
def test_no_folder_is_more_than_a_turn_ahead_of_one_that_still_waits(waiting: dict[str, int], images: int) -> None:
    folders = Folders(images=images, **waiting)
    served: Counter[str] = Counter()
    while (folder := folders.claim()) is not None:
        served[folder] += 1
        still = [other for other, count in folders.waiting.items() if count]
        if still:
            assert served[folder] - min(served[other] for other in still) <= images + 2 * FEW
    assert served == waiting
