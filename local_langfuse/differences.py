"""Where a real Langfuse counts otherwise than genai-prices, as measured on Langfuse 4.16."""

import re

# Langfuse knows a model with these in front of its name, and no other host's spelling.
_IN_FRONT = re.compile(r"^(openai|anthropic|google|googleai)/")
_ON_BEDROCK = re.compile(r"^(?:[a-z-]+\.)?anthropic\.(claude-.+?)(?:-v\d+(?::\d+)?)?$")
# A fine-tuned model has no list price there, and who serves an open one sets its own.
_UNPRICED = re.compile(r"^ft:|\.ft-|^gpt-oss")
# Only these have a price for the tokens of their reasoning: that of their output.
_REASONS = re.compile(r"^(o\d|gpt-([5-9]|\d\d)|gemini-(2\.5|[3-9]))")
# One price however long the prompt is.
_FLAT = frozenset({"claude-sonnet-4-5"})


def plain_name(model: str) -> str:
    """Return the name to look up, or "" for a model without a list price.

    `plain_name("us.anthropic.claude-haiku-4-5-20251001-v1:0") -> "claude-haiku-4-5-20251001"`
    """
    name = _IN_FRONT.sub("", model.lower())
    name = _ON_BEDROCK.sub(r"\1", name)
    return "" if _UNPRICED.search(name) else name


def reasons(model: str) -> bool:
    """Tell whether the tokens of the model's reasoning have a price."""
    return _REASONS.match(model) is not None


def is_flat(model: str) -> bool:
    """Tell whether the model has one price, where genai-prices has more for long prompts."""
    return model in _FLAT


def has_one_price(model: str) -> bool:
    """Tell whether all tokens of a call have one price, kept under `total`."""
    return model.startswith("text-embedding-")
