"""Settings of the end of a round, and of the discount of stale updates; a scenario embeds them."""

from __future__ import annotations

from fedpress.compression.settings import ADVANCED, STRICT, Field, Positive, Settings, dataclass


@dataclass(frozen=True, config=STRICT)
class Closing(Settings):
    """End of a round: deadline, over-selection, and the fewest replies for a step."""

    over_selection: int = Field(
        default=0,
        ge=0,
        description="Clients asked beyond the wanted number; the round closes with the first replies of that number."
        " Needs network.",
    )
    min_replies: int = Field(default=1, ge=1, description="Good replies below which a round changes nothing.")
    deadline: Positive | None = Field(
        default=None, description="Virtual seconds after which a round closes without the late ones. Needs network."
    )


@dataclass(frozen=True, config=STRICT)
class Staleness(Settings):
    """Discount of updates that were trained from an older version."""

    staleness_exponent: float = Field(
        default=0.5,
        ge=0,
        json_schema_extra=ADVANCED,
        kw_only=True,
        description="For buffered: a reply s steps behind counts (1 + s)^-staleness_exponent of its examples; 0: all"
        " alike.",
    )
    max_staleness: int | None = Field(
        default=None,
        ge=0,
        json_schema_extra=ADVANCED,
        kw_only=True,
        description="For buffered: replies that are more steps behind are refused; null: none is.",
    )

    def discount(self, staleness: int) -> float:
        """Return the fraction of its examples that an update of this staleness, in steps, counts.

        >>> Staleness().discount(0), Staleness().discount(3)
        (1.0, 0.5)
        """
        return float((1 + staleness) ** -self.staleness_exponent)
