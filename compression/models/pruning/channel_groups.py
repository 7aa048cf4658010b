"""Groups of a model that can only be pruned together: channels, neurons, feed-forward units, attention heads.

The parts of a unit (a channel, the batch norm behind it, the columns of the next layer, both ends of a residual
connection; for a head its rows of queries, keys and values and its columns of the output) are found by following labels
through a forward pass (`channel_labels`), after the idea of G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph:
Toward Any Structural Pruning", CVPR 2023, section 3.

Nothing is believed that was not tried: a copy of the model with random weights is pruned by part of every group, and
must answer as `channel_flow.Absent` says that the model answers without these channels, up to rounding. Groups that
fail, such as those with a size written into the forward pass, are found by bisection and stay whole; a warning names
them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from fedpress.compression.models.pruning.channel_probe import Probe as Probe
from fedpress.compression.models.pruning.channel_removal import Group as Group
from fedpress.compression.models.pruning.channel_removal import Member as Member
from fedpress.compression.models.pruning.channel_removal import Removal as Removal
from fedpress.compression.models.pruning.channel_removal import called as called
from fedpress.compression.models.pruning.channel_removal import check_ready as check_ready
from fedpress.compression.models.pruning.channel_removal import copied as copied
from fedpress.compression.models.pruning.channel_removal import cut as cut
from fedpress.compression.models.pruning.channel_removal import ignored_paths as ignored_paths
from fedpress.compression.models.pruning.channel_removal import named_tensors as named_tensors
from fedpress.compression.models.pruning.channel_removal import outputs_of as outputs_of
from fedpress.compression.models.pruning.channel_removal import without as without
from fedpress.compression.models.pruning.settings import Tracing

HINT: Final = (
    "The likely cause is a size written into the forward pass, such as x.view(-1, 1024): write x.flatten(1), or name"
    " the layer in `ignored`"
)

_log = logging.getLogger(__name__)


def find(
    model: nn.Module,
    example: Any,
    ignored: Collection[nn.Module | str] = (),
    seconds: float = Tracing().trace_seconds,
) -> list[Group]:
    """Return the groups of a model that can be pruned, the last layers first.

    Outputs of the model, and tensors of layers of a kind that cannot be rebuilt at another size, are left out.

    Args:
        model: The model; untouched.
        example: Batch of inputs, (N, ...); a tuple of arguments, or a dict of named ones.
        ignored: Layers whose own channels are kept, or patterns of their names such as "blocks.0.*".
        seconds: Longest forward pass.

    Raises:
        PruneError: The model cannot be copied or run, a pass takes too long, or nothing has an ignored name.
    """
    return Trials(model, example, ignored, seconds).groups


class Trials:
    """The groups of a model as `find` returns them, and trials of what is to be removed of them.

    Args:
        model: The model; untouched.
        example: Batch of inputs, as for `find`.
        ignored: Layers whose own channels are kept, as for `find`.
        seconds: Longest forward pass.

    Attributes:
        groups: Groups that can be pruned.
        failure: Why there is none, where trials failed for all; empty otherwise.

    Raises:
        PruneError: As for `find`.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        ignored: Collection[nn.Module | str] = (),
        seconds: float = Tracing().trace_seconds,
    ) -> None:
        check_ready(model)
        self.failure = ""
        with _seeded():
            self._probe = Probe(model, example, ignored_paths(model, ignored), seconds)
            self.groups = self._probe.groups()
            wrong = self._probe.wrong(self.groups)
            while self._probe.couple(wrong) or self._probe.cut_otherwise(self.groups, wrong):
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)
            if self._probe.cut_as_before(self.groups, wrong):  # what is wrong there is said below
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)
            while wrong:
                explained = "; ".join(f"layer {group.name!r}: {error}" for group, error in wrong[:3])
                if len(wrong) == len(self.groups):
                    self.failure = f"nothing can be removed from the model. {explained}. {HINT}"
                names = ", ".join(group.name for group, _ in wrong)
                _log.warning("layers that keep all their channels: %s. %s. %s", names, explained, HINT)
                self._probe.keep([group for group, _ in wrong])
                self.groups = self._probe.groups()
                wrong = self._probe.wrong(self.groups)

    def error(self, removal: Removal) -> str:
        """Return what is wrong with the model without some units: it does not run, or answers otherwise; "": nothing.

        Args:
            removal: Some of `groups`, and units of each.
        """
        removal = [pair for pair in removal if len(pair[1])]
        with _seeded():
            return self._probe.error(removal) if removal else ""

    def culprits(self, removal: Removal) -> list[str]:
        """Return the layers that are the cause of an error of a removal.

        Args:
            removal: Some of `groups`, and units of each.
        """
        with _seeded():
            return [group.name for group, _ in self._probe.bisected([pair for pair in removal if len(pair[1])])]


@contextmanager
def _seeded() -> Iterator[None]:
    """Run a block with torch's generator seeded, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
