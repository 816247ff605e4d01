"""Count tokens before the call: the counting of the local model, which needs it as well."""

from local_model.tokens import TokenCount, count_message_tokens, count_tokens

__all__ = ["TokenCount", "count_message_tokens", "count_tokens"]
