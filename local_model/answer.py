"""Choose an answer: the sentences in the prompt that are nearest to the question.

The model understands nothing. It finds the sentences that share the most words with the
question, and repeats them. So it knows only what the prompt tells it, is wrong when words
mislead it, and abstains only if the prompt asks it to. The same prompt always gets the
same answer.
"""

import json
import re

from local_model.calls import choose_calls
from local_model.exchange import Answer, Ask, Call, Usage
from local_model.form import Form
from local_model.prompt import ABSTAIN, NOT_SEEN, Prompt, keywords, read
from local_model.tokens import count_tokens
from local_model.usage import PromptCache, count_input

ENOUGH = 0.4  # share of the question: if it finds less, the model abstains, if told to
NOTHING_TO_READ = "There is no text in this prompt that the local model could answer from."
KEYWORDS = re.compile(r"\b(as|into|in) (search )?keywords\b", re.IGNORECASE)
QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'(.+?)'(?!\w)")
LIMIT = re.compile(r"\b(one|two|three|four|five|\d{1,4}) (word|sentence)s?\b", re.IGNORECASE)
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
# You pay for the thoughts of a model that reasons. Here they are the sentences that share a
# word with the question, times a factor for the effort.
EFFORTS = {"none": 0.0, "minimal": 0.25, "low": 0.5, "medium": 1, "high": 2, "xhigh": 3, "max": 4}


def respond(ask: Ask, cache: PromptCache) -> Answer:
    """Answer a request. Reasoning comes first: a limit may leave little for the answer."""
    prompt, model = read(ask.messages), ask.model.name
    tokens = count_input(ask)
    cached, written = cache.look_up(ask, tokens)
    reasoning = 0
    if ask.effort != "none":
        compared = "\n".join(prompt.facts.sharing(prompt.question))
        reasoning = round(count_tokens(compared, model).tokens * EFFORTS[ask.effort])
    if ask.limit is not None:
        reasoning = min(reasoning, ask.limit)
    left = None if ask.limit is None else ask.limit - reasoning
    text, calls, finish = "", choose_calls(ask, prompt), "tool_calls"
    if calls:
        calls, output, whole = _shorten_calls(calls, left, model)
    else:
        text, output, whole = _shorten(_said(ask, prompt), left, model)
        finish = "stop"
    usage = Usage(tokens, cached, written, output + reasoning, reasoning)
    return Answer(text, tuple(calls), finish if whole else "length", usage)  # type: ignore[arg-type]


def _said(ask: Ask, prompt: Prompt) -> str:
    """Return what the model says: text, or JSON in the requested form."""
    if ask.form == "json_object":
        text = json.dumps({"answer": answer_text(prompt)}, ensure_ascii=False)
    elif ask.form == "json_schema":
        filled = Form(ask.schema, prompt, NOTHING_TO_READ).fill(ask.schema)
        text = json.dumps(filled, ensure_ascii=False)
    else:
        text = answer_text(prompt)
        text += f" {NOT_SEEN}{ask.unseen}.)" if ask.unseen else ""
    ends = [place for stop in ask.stop if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def answer_text(prompt: Prompt) -> str:
    """Return the nearest facts or, if none is near, what the prompt wants to hear then."""
    told = " ".join([*prompt.instructions, prompt.question])
    if KEYWORDS.search(told):
        return " ".join(keywords(prompt.question))
    limits = {unit.lower(): NUMBERS.get(n.lower()) or int(n) for n, unit in LIMIT.findall(told)}
    most = limits.get("sentence")
    if len(prompt.results) > 1:  # one fact from each tool's result
        found = [result.nearest(prompt.question, 1)[0][0] for result in prompt.results][
            : most or None
        ]
    else:
        found, share = prompt.facts.nearest(prompt.question, most or 2)
        abstain = next(filter(ABSTAIN.match, prompt.instructions), None)
        if abstain and share < ENOUGH:
            quoted = QUOTED.search(abstain[:2000])
            found = [next(filter(None, quoted.groups())) if quoted else "I do not know."]
    words = " ".join(found or [NOTHING_TO_READ]).split(" ")
    return " ".join(words[: limits.get("word")])


def pieces(text: str) -> list[str]:
    """Split a text into words, as they are streamed: `"Yes, it is." -> ["Yes, ", "it ", "is."]`."""
    return re.findall(r"\S+\s*|\s+", text)


def _shorten(text: str, limit: int | None, model: str) -> tuple[str, int, bool]:
    """Cut a text to `limit` tokens; return it, its token count, and whether it is complete."""
    tokens = count_tokens(text, model).tokens
    if limit is None or tokens <= limit:
        return text, tokens, True
    parts = pieces(text)
    low, high = 0, len(parts) - 1  # this many words fit; this many may fit
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_tokens("".join(parts[:middle]), model).tokens <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    text = "".join(parts[:low])
    return text, count_tokens(text, model).tokens, False


def _shorten_calls(
    calls: list[Call], limit: int | None, model: str
) -> tuple[list[Call], int, bool]:
    """Cut calls to `limit` tokens: the arguments of the last one may end halfway."""
    kept: list[Call] = []
    used = 0
    for call in calls:
        name = count_tokens(json.dumps({"name": call.name, "arguments": ""}), model).tokens
        left = None if limit is None else limit - used - name
        if left is not None and left < 0:
            return kept, used, False
        arguments, tokens, whole = _shorten(call.arguments, left, model)
        kept.append(Call(call.id, call.name, arguments))
        used += name + tokens
        if not whole:
            return kept, used, False
    return kept, used, True
