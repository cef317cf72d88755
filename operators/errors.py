"""Every error that Winnow raises on purpose.

    WinnowError                  exit code 1
    |-- UserError                exit code 2: config, input or workspace is wrong; the message says what to change
    |   |-- ConfigError          a key, a value, a name or a combination in the config
    |   |-- InputError           a pool, a table or a file that cannot serve as what the config says it is
    |   |   `-- InputChanged     a file that was replaced while it was read
    |   |-- ModelError           weights, names or towers of a model
    |   `-- WorkspaceError       a workspace that cannot be written, read or trusted
    |       `-- DamagedError     one file of it that is not what was written; the message begins with its path
    |-- LimitExceeded            exit code 3: a limit of the config stopped the run
    |-- TrainingDiverged         exit code 3: loss, gradient or weights of a training are no numbers any more
    `-- UnusableImage            operators.images: one image that costs its sample; never leaves the reading

Each survives pickling, so that it crosses process borders whole; all but `UnusableImage` take one message.

Signals between two functions are no part of the tree, and no user ever sees them:

    ShardDamagedError            pipeline.readers.sample: ends the reading of a shard early
    NotPublished                 pipeline.run: a dry run came to what a real one would have to make
    KeyProblem                   pipeline.config.problems: a ValueError by which a validator blames another key
"""


class WinnowError(Exception):
    """The root. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)


class UserError(WinnowError):
    """Something that the user can change is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A key, a value, a name or a combination in the config."""


class InputError(UserError):
    """A pool, a table or a file that cannot serve as what the config says it is."""


class InputChanged(InputError):
    """A file that was replaced while it was read: what was read of it is of no use."""


class ModelError(UserError):
    """Weights, names or towers of a model."""


class WorkspaceError(UserError):
    """A workspace that cannot be written, read or trusted."""


class DamagedError(WorkspaceError):
    """A file of a workspace that is cut, changed, unreadable or gone. The first word of the message is its path."""


class LimitExceeded(WinnowError):
    """A limit of the config stopped the run before anything downstream of it began."""

    exit_code = 3


class TrainingDiverged(WinnowError):
    """Loss, gradient or weights of a training are no finite numbers any more; a state before that is saved."""

    exit_code = 3
