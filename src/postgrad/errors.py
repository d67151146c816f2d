"""What can go wrong, named by whose move it is.

PostgradError
├── ConfigError(ValueError)   the recipe or the command line
├── DataError(ValueError)     a file, a row, a checkpoint
├── RolloutError              one trajectory failed; data, not a crash
│   ├── EngineError
│   ├── EnvError
│   ├── GraderError
│   └── SandboxError
├── TrainingDiverged          a loss or gradient norm is not finite
├── GateFailed                the candidate may not be released
├── AccessError               this person may not do that, or is not who they say
└── StoreError                the label store, the workspace or the disk
    ├── StaleError            somebody, perhaps the same person in another tab, has been there since
    └── CollisionError        two transactions waited for each other, and the database took this one back
"""


class PostgradError(Exception):
    """Base of every error whose message a user should read; the command line prints it and exits with 2."""


class ConfigError(PostgradError, ValueError):
    pass


class DataError(PostgradError, ValueError):
    pass


class RolloutError(PostgradError):
    pass


class EngineError(RolloutError):
    pass


class EnvError(RolloutError):
    pass


class GraderError(RolloutError):
    pass


class SandboxError(RolloutError):
    pass


class TrainingDiverged(PostgradError):
    pass


class GateFailed(PostgradError):
    pass


class AccessError(PostgradError):
    pass


class StoreError(PostgradError):
    pass


class StaleError(StoreError):
    pass


class CollisionError(StoreError):
    pass
