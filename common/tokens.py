"""Count tokens before a call, with the code that the local model counts with."""

from local_model.tokens import TokenCount, count_message_tokens, count_tokens

__all__ = ["TokenCount", "count_message_tokens", "count_tokens"]
