"""The OpenAI models that the local model stands in for: until when, and what each accepts.

Shut-down dates are those in the docstrings of `openai` 3.57 (`types/shared/chat_model.py`).
What a model refuses was collected from refused requests: see `rules.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal

from local_model.shape import ApiError

Clock = Callable[[], date]


def today() -> date:
    """Return today's date in UTC, which shut-down dates are compared with."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class Model:
    """One of OpenAI's models, as far as a request can tell."""

    name: str
    snapshot: str = ""  # the date of the version it answers as
    shutdown: date | None = None
    efforts: tuple[str, ...] = ()  # of reasoning; none for a model that does not reason
    default_effort: str = "none"
    # Function tools on chat completions: always; only if no effort but "none" is sent; only
    # if "none" is sent; or never, because they are only on the Responses API.
    chat_tools: Literal["always", "no effort", "none sent", "never"] = "always"
    writes_cache: bool = False  # it charges for writing to the prompt cache
    dimensions: int = 0  # of an embedding model

    @property
    def reasons(self) -> bool:
        """Whether the model can reason at all."""
        return bool(self.efforts)

    @property
    def dated(self) -> str:
        """The name it answers under: like OpenAI, a dated one if there is one."""
        return f"{self.name}-{self.snapshot}" if self.snapshot else self.name

    @property
    def created(self) -> int:
        """The time of its version in seconds since 1970, or 0 if it has no date."""
        if not self.snapshot:
            return 0
        return int(datetime.fromisoformat(f"{self.snapshot}T00:00:00+00:00").timestamp())


PLAIN = Model("")
O_SERIES = Model("", efforts=("low", "medium", "high"), default_effort="medium")
GPT_5 = replace(O_SERIES, efforts=("minimal", "low", "medium", "high"))
GPT_5_1 = Model("", efforts=("none", "low", "medium", "high"))
GPT_5_2 = replace(GPT_5_1, efforts=(*GPT_5_1.efforts, "xhigh"))
GPT_5_4 = replace(GPT_5_2, chat_tools="no effort")
GPT_5_5 = replace(GPT_5_4, default_effort="medium")
GPT_5_6 = replace(
    GPT_5_5, efforts=(*GPT_5_2.efforts, "max"), chat_tools="none sent", writes_cache=True
)
RESPONSES_ONLY_TOOLS = replace(GPT_5_6, chat_tools="never")
SMALL = Model("", dimensions=1536)
LARGE = Model("", dimensions=3072)

# A name may have the dates of its versions after @, separated by commas. Then comes the day
# of its shut-down, if announced: from that day on, it is gone.
_TABLE: tuple[tuple[Model, str], ...] = (
    (RESPONSES_ONLY_TOOLS, "gpt-6-astra"),
    (RESPONSES_ONLY_TOOLS, "gpt-6.2-astra"),
    (RESPONSES_ONLY_TOOLS, "gpt-6.1-sol"),
    (RESPONSES_ONLY_TOOLS, "gpt-6.2-sol"),
    (GPT_5_6, "gpt-6.1-terra"),
    (GPT_5_6, "gpt-6-sol"),
    (GPT_5_6, "gpt-6-luna"),
    (GPT_5_6, "gpt-5.6-sol"),
    (GPT_5_6, "gpt-5.6-terra"),
    (GPT_5_6, "gpt-5.6-luna"),
    (GPT_5_5, "gpt-5.5@2026-04-23"),
    (GPT_5_4, "gpt-5.4"),
    (GPT_5_4, "gpt-5.4-mini@2026-03-17"),
    (GPT_5_4, "gpt-5.4-nano@2026-03-17 2027-04-01"),
    (GPT_5_2, "gpt-5.2@2025-12-11"),
    (GPT_5_1, "gpt-5.1@2025-11-13 2027-04-01"),
    (GPT_5, "gpt-5@2025-08-07 2026-12-11"),
    (GPT_5, "gpt-5-mini@2025-08-07 2026-12-11"),
    (GPT_5, "gpt-5-nano@2025-08-07 2026-12-11"),
    (O_SERIES, "o3@2025-04-16 2026-12-11"),
    (O_SERIES, "o4-mini@2025-04-16 2026-10-23"),
    (O_SERIES, "o3-mini@2025-01-31 2026-10-23"),
    (O_SERIES, "o1@2024-12-17 2026-10-23"),
    (PLAIN, "gpt-4.1@2025-04-14 2027-01-14"),
    (PLAIN, "gpt-4.1-mini@2025-04-14 2027-01-14"),
    (PLAIN, "gpt-4.1-nano@2025-04-14 2026-10-23"),
    (PLAIN, "gpt-4o@2024-08-06,2024-11-20 2027-01-14"),
    (PLAIN, "gpt-4o-mini@2024-07-18 2027-01-14"),
    (PLAIN, "chatgpt-4o-latest 2026-02-17"),
    (PLAIN, "gpt-4-turbo@2024-04-09 2026-10-23"),
    (PLAIN, "gpt-4 2026-10-23"),
    (PLAIN, "gpt-3.5-turbo 2026-10-23"),
    (SMALL, "text-embedding-3-small"),
    (LARGE, "text-embedding-3-large"),
)


def _rows() -> dict[str, Model]:
    """Return every model under its own name and under each dated one."""
    rows: dict[str, Model] = {}
    for family, line in _TABLE:
        names, _, day = line.partition(" ")
        name, _, versions = names.partition("@")
        snapshots = versions.split(",")
        gone = date.fromisoformat(day) if day else None
        rows[name] = replace(family, name=name, snapshot=snapshots[0], shutdown=gone)
        for snapshot in filter(None, snapshots):
            rows[f"{name}-{snapshot}"] = replace(rows[name], snapshot=snapshot)
    return rows


MODELS = _rows()


def available(clock: Clock) -> dict[str, Model]:
    """Return the models that are not shut down yet, by name."""
    day = clock()
    return {name: row for name, row in MODELS.items() if not (row.shutdown and row.shutdown <= day)}


def find(name: str, clock: Clock) -> Model:
    """Return the model with exactly this name; 404 if there is none, or it was shut down."""
    model = MODELS.get(name)
    if model and name in available(clock):
        return model
    message = f"The model `{name[:100]}` does not exist or you do not have access to it."
    if model:
        message = (
            f"The model `{name}` has been deprecated: it was shut down on {model.shutdown}. "
            "Learn more here: https://developers.openai.com/api/docs/deprecations"
        )
    raise ApiError(message, "model", "model_not_found", 404)


def find_for(name: str, clock: Clock, *, embeds: bool) -> Model:
    """Return the model with this name; refuse a chat model if `embeds`, else an embedding model."""
    model = find(name, clock)
    if embeds and not model.dimensions:
        raise ApiError(f"`{name}` is not an embedding model.", "model")
    if model.dimensions and not embeds:
        raise ApiError(f"`{name}` is an embedding model, not a chat model.", "model")
    return model
