"""What OpenAI's models refuse although its form is right, in both protocols.

Collected from refusals that others reported: livekit/agents#7169, pipecat-ai/pipecat#4043,
GoogleChromeLabs/webmcp-tools#417, BerriAI/litellm#34569, sashabaranov/go-openai#1061,
anomalyco/opencode#4451. A parameter that is null counts as not sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from local_model.answer import EFFORTS
from local_model.catalog import Model
from local_model.exchange import Message
from local_model.shape import ApiError, Json, listed, refuse

MOST_CHARACTERS = 200_000  # of text in a request: more would hold up everybody else
LOCAL = "The local model cannot do this: "


def effort_of(model: Model, sent: str | None, param: str) -> str:
    """Return the reasoning effort that applies; refuse one that the model does not have."""
    if sent is None:
        return model.default_effort
    refuse(
        sent not in EFFORTS,
        f"Invalid value: '{sent[:100]}'. Supported values are: {listed(EFFORTS)}.",
        param,
        "invalid_value",
    )
    refuse(not model.reasons, *_unsupported(param))
    refuse(
        sent not in model.efforts,
        f"Unsupported value: '{param}' does not support '{sent}' with this model. Supported values "
        f"are: {listed(model.efforts)}.",
        param,
        "unsupported_value",
    )
    return sent


def _unsupported(param: str, instead: str = "") -> tuple[str, str, str]:
    message = f"Unsupported parameter: '{param}' is not supported with this model.{instead}"
    return message, param, "unsupported_parameter"


def refuse_sampling(model: Model, effort: str, body: Mapping[str, Any]) -> None:
    """Refuse what a reasoning model does not accept, and logprobs, which this one never has."""
    sent = {key for key in body if body[key] is not None}
    if effort != "none":
        temperature = body.get("temperature")
        refuse(
            temperature not in (None, 1),
            f"Unsupported value: 'temperature' does not support {str(temperature)[:40]} with this "
            "model. Only the default (1) value is supported.",
            "temperature",
            "unsupported_value",
        )
        for key in ("top_p", "logprobs", "top_logprobs"):
            refuse(key in sent, *_unsupported(key))
    if model.reasons:
        instead = " Use 'max_completion_tokens' instead."
        refuse("max_tokens" in sent, *_unsupported("max_tokens", instead))
        refuse("stop" in sent, *_unsupported("stop"))
    for key in ("logprobs", "top_logprobs"):
        refuse(body.get(key), f"{LOCAL}it has no token probabilities.", key)


def refuse_chat_tools(model: Model, sent: str | None) -> None:
    """Refuse function tools on chat completions if the model only has them elsewhere."""
    told = f"Function tools with reasoning_effort are not supported for {model.name} in "
    told += "/v1/chat/completions. "
    match model.chat_tools:
        case "never":
            told += "Please use /v1/responses instead."
            raise ApiError(told, "tools")
        case "none sent":
            told += "To use function tools, use /v1/responses or set reasoning_effort to 'none'."
            refuse(sent != "none", told, "reasoning_effort")
        case "no effort":
            told += "Please use /v1/responses instead."
            refuse(sent not in (None, "none"), told, "reasoning_effort")


def refuse_too_long(messages: Sequence[Message], extra: str) -> None:
    """Refuse a request with more text than we can read without holding up others."""
    length = len(extra) + sum(len(m.text) + len(str(m.calls)) for m in messages)
    refuse(
        length > MOST_CHARACTERS,
        f"This request has {length} characters of text. The local model reads at most "
        f"{MOST_CHARACTERS}: shorten it.",
        "messages",
        "context_length_exceeded",
    )


def refuse_options_without_stream(body: Json) -> None:
    """Refuse stream options if no stream was requested."""
    refuse(
        body.get("stream_options") is not None and not body.get("stream"),
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
    )
