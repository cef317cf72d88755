"""`prune`: keeps a share of the pool, spread over its concepts.

| method | which rows stay |
|---|---|
| `dbp` | the hardest of each cluster, more where it is varied and remote (Abbas et al. 2024, arXiv 2401.04578) |
| `cluster_balanced` | the hardest of each cluster, all clusters with the same quota |
| `cluster_proportional` | the hardest of each cluster, the same share of each |
| `hierarchical` | as even as can be at each level of a hierarchy (Vo et al. 2024, arXiv 2405.15613) |
| `prototypes` | the rows farthest from their cluster's or class's prototype (Sorscher et al. 2022, arXiv 2206.14486) |
| `random` | rows drawn without looking at them |

Where verdicts of an earlier run stand, quotas are found anew over all that enters, none below what stands and was kept;
what they leave open is filled up with new rows.

Each method is a settings class with a `run`, in a module beside this one; a new one needs a line here. What they read,
their verdict reasons and details stand in their modules.
"""

from typing import Annotated

from pydantic import Field

from pipeline.steps.prune.balanced import BalancedPrune, ProportionalPrune
from pipeline.steps.prune.density import DensityPrune
from pipeline.steps.prune.draw import RandomPrune
from pipeline.steps.prune.hierarchical import HierarchicalPrune
from pipeline.steps.prune.prototypes import PrototypePrune

AnyPrune = Annotated[
    DensityPrune | BalancedPrune | ProportionalPrune | HierarchicalPrune | PrototypePrune | RandomPrune,
    Field(discriminator="method"),
]
