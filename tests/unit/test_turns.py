"""What lies in the folder of a queue, whoever put it there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from understudy.turns import Wish, place

SOUND = {"at": 0.0, "devices": ["GPU-a"], "count": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        *(json.dumps({**SOUND, **wrong}) for wrong in ({"count": 0}, {"count": "x"}, {"at": None}, {"devices": 3})),
        *(json.dumps({**SOUND, "devices": [name]}) for name in ("..", "looking", 7, "GPU-" + 200 * "a", "GPU-../x y")),
    ],
)
def test_what_is_no_wish_holds_up_nobody(text: str, tmp_path: Path) -> None:
    for name in ("waiting-x", "waiting-1-2-z", "GPU-a"):
        (tmp_path / name).touch()
    first = tmp_path / "waiting-000000000001-1-ab"
    first.write_text(text.replace('"at": 0.0', f'"at": {time.monotonic()}'))
    with place(tmp_path, Wish(("GPU-a",), 1)) as mine:
        assert mine.look() == []
    assert not first.exists()


def test_a_sound_wish_counts(tmp_path: Path) -> None:
    (tmp_path / "waiting-000000000001-1-ab").write_text(json.dumps({**SOUND, "at": time.monotonic()}))
    with place(tmp_path, Wish(("GPU-a",), 1)) as mine:
        assert mine.look() == [Wish(("GPU-a",), 1)]
