"""A driver without Ray: holds the lease of a workspace and writes what must be single, over and over.

    python -m tests.faults.holder URL OPTIONS NAME TURNS

Prints `held`; ends with exit code 2 and the message of an error of ours.
"""

import json
import sys
import time

from operators.errors import UserError
from pipeline.storage import Store


def main() -> int:
    """Writes `summary.json` for so many turns of a tenth of a second."""
    url, options, name, turns = sys.argv[1:]
    store = Store(url, json.loads(options))
    try:
        with store.locked(lambda text: print(text, flush=True)):
            print("held", flush=True)
            for turn in range(int(turns)):
                store.replace("summary.json", f"{name} {turn}".encode())
                time.sleep(0.1)
    except UserError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
