"""Where a real Langfuse differs from genai-prices, as measured on Langfuse 4.16."""

import re

# Langfuse knows a model name with one of these prefixes, but not as other hosts spell it.
_IN_FRONT = re.compile(r"^(openai|anthropic|google|googleai)/")
_ON_BEDROCK = re.compile(r"^(?:[a-z-]+\.)?anthropic\.(claude-.+?)(?:-v\d+(?::\d+)?)?$")
# Langfuse has no list price for a fine-tuned model; for an open one, each host sets its own.
_UNPRICED = re.compile(r"^ft:|\.ft-|^gpt-oss")
# Only these have a price for reasoning tokens, and it is the price of output.
_REASONS = re.compile(r"^(o\d|gpt-([5-9]|\d\d)|gemini-(2\.5|[3-9]))")
# The price is the same however long the prompt is.
_FLAT = frozenset({"claude-sonnet-4-5"})


def plain_name(model: str) -> str:
    """Return the name to look up, or "" for a model without a list price.

    `plain_name("us.anthropic.claude-haiku-4-5-20251001-v1:0") -> "claude-haiku-4-5-20251001"`
    """
    name = _IN_FRONT.sub("", model.lower())
    name = _ON_BEDROCK.sub(r"\1", name)
    return "" if _UNPRICED.search(name) else name


def reasons(model: str) -> bool:
    """Tell whether the model's reasoning tokens have a price."""
    return _REASONS.match(model) is not None


def is_flat(model: str) -> bool:
    """Tell whether long prompts cost no more here, although they do in genai-prices."""
    return model in _FLAT


def has_one_price(model: str) -> bool:
    """Tell whether all tokens of a call have the same price, stored as `total`."""
    return model.startswith("text-embedding-")
