"""A driver without Ray: holds the lease of a workspace and writes what must be single, once for each line it is given.

    python -m tests.faults.holder URL OPTIONS NAME PATIENCE

Prints `held` when it has written for the first time; ends with the end of its input, or with exit code 2 and the
message of an error of ours.
"""

import itertools
import json
import sys

from operators.errors import UserError
from pipeline import claim
from pipeline.storage import Store


def main() -> int:
    """Writes `summary.json`; PATIENCE seconds without a renewal end the lease."""
    url, options, name, patience = sys.argv[1:]
    claim.RENEW_SECONDS = 0.2
    claim.MISSED_RENEWALS = round(float(patience) / claim.RENEW_SECONDS)
    store = Store(url, json.loads(options))
    try:
        with store.locked(lambda text: print(text, flush=True)):
            for turn, _ in enumerate(itertools.chain([""], sys.stdin)):
                store.replace("summary.json", f"{name} {turn}".encode())
                if not turn:
                    print("held", flush=True)
    except UserError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
