"""``python -m robustlab.verification NET.onnx SPEC.vnnlib --timeout S``: one competition instance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Print ``sat`` and a witness, ``unsat``, ``unknown`` or ``timeout``; the status is 2 for files not understood."""
    parser = argparse.ArgumentParser(prog="python -m robustlab.verification", description=__doc__)
    parser.add_argument("network", help="ONNX file (.onnx or .onnx.gz)")
    parser.add_argument("specification", help="VNN-LIB file (.vnnlib or .vnnlib.gz)")
    parser.add_argument("--timeout", type=float, default=None, metavar="S", help="seconds (default: no limit)")
    parser.add_argument("--memory", type=float, default=4.0, metavar="GB", help="of open domains (default: 4)")
    parser.add_argument("--device", default="cpu", help="where bounds are computed (default: cpu)")
    parser.add_argument("--progress", action="store_true", help="show a bar")
    given = parser.parse_args(arguments)
    from robustlab.verification.complete.competition import check

    try:
        answer, witness = check(
            given.network,
            given.specification,
            timeout=given.timeout,
            memory=given.memory,
            device=given.device,
            progress=given.progress,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(answer)
    if witness is not None:
        print(witness)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
