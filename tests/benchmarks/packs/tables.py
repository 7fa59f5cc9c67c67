"""What the measurements say: ratios, and tables to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20


def ratios(contenders: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best way to train alone, and for each K how the best packs compare with it and with their bounds.

    Of each kind the fastest arrangement of processes and threads counts, of the bounds too.
    """
    baseline = _fastest(contenders, "solo", 1)
    packs = []
    for k in sorted({contender["k"] for contender in contenders if contender["group"] == "pack"}):
        best = _fastest(contenders, "pack", k)
        bounds = {f"share_of_{group}": _fastest(contenders, group, k) for group in ("peft_bound", "own_bound")}
        packs.append(
            {
                "k": k,
                "rate": best["rate"],
                "arrangement": best["arrangement"],
                "ratio": best["rate"] / baseline["rate"],
                **{name: best["rate"] / bound["rate"] if bound else None for name, bound in bounds.items()},
                "peak_bytes": best["peak_bytes"],
            }
        )
    return {"baseline": {name: baseline[name] for name in ("rate", "arrangement", "compiled")}, "packs": packs}


def _fastest(contenders: Sequence[Mapping[str, Any]], group: str, k: int) -> Any:
    found = [contender for contender in contenders if (contender["group"], contender["k"]) == (group, k)]
    return max(found, key=lambda contender: float(contender["rate"]), default=None)


def print_comparison(result: Mapping[str, Any]) -> None:
    """Everyone's trial-steps per second, then the packs' ratios."""
    contenders = result["contenders"]
    print("  alone                        trial-steps/s   peak MiB")
    for solo in (contender for contender in contenders if contender["group"] == "solo"):
        arrangement = solo["arrangement"] + (", compiled" if solo["compiled"] else "")
        print(f"    {arrangement:<25}{solo['rate']:>12.1f}{solo['peak_bytes'] / MIB:>12.0f}")
    print(f"    {'a process each':<25}{result['process_each']['rate']:>12.1f}   start-up included")
    print("  packed, and one adapter on as many rows (the faster one of passes as large as a pack's or a trial's)")
    arrangements = list(dict.fromkeys(each["arrangement"] for each in contenders if each["group"] == "pack"))
    print(f"    {'K':>3} {'':14}{'packs':>9}{'peft':>9}{'own':>9}{'peak MiB':>10}")
    for k in (row["k"] for row in result["packs"]):
        for arrangement in arrangements:
            here = [each for each in contenders if each["arrangement"] == arrangement]
            found = [_fastest(here, group, k) for group in ("pack", "peft_bound", "own_bound")]
            rates = "".join(f"{each['rate']:>9.1f}" if each else f"{'-':>9}" for each in found)
            peak = f"{found[0]['peak_bytes'] / MIB:>10.0f}" if found[0] else ""
            print(f"    {k:>3} {arrangement:14}{rates}{peak}")
    print(f"  the fastest of each\n    {'K':>3} {'packs':14}{'x alone':>9}{'of peft':>9}{'of own':>9}")
    for row in result["packs"]:
        shares = "".join(
            f"{row[name]:>9.0%}" if row[name] is not None else f"{'-':>9}"
            for name in ("share_of_peft_bound", "share_of_own_bound")
        )
        print(f"    {row['k']:>3} {row['arrangement']:14}{row['ratio']:>9.2f}{shares}")
    for words in result["left_out"]:
        print(f"  left out: {words}")
    for words in sorted({note for contender in contenders for note in contender["notes"]}):
        print(f"  note: {words}")


def print_shares(result: Mapping[str, Any]) -> None:
    """Where a pack's time goes."""
    parts = ", ".join(f"{part} {share:.0%}" for part, share in result["parts"].items())
    print(f"  time of a pack of {result['k']}, {result['arrangement']}: {parts}")


def print_ablations(result: Mapping[str, Any]) -> None:
    """What each trick is worth."""
    print(f"  a pack of {result['k']} with rows of many lengths, {result['arrangement']}, takes so many times as long:")
    for row in result["without"]:
        print(f"    {row['times']:>6.2f}  {row['words']}")
