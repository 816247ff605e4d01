"""Delete scores, and traces with everything in them. It happens at once."""

from typing import Any

from local_langfuse.store import Row, Store
from local_langfuse.wire import Query, Refused, as_object, texts

MAX_TRACES = 1000


def delete_score(store: Store, score_id: str, _: Query) -> Row:
    """Delete one score; as in Langfuse, it is no error if it does not exist."""
    store.delete("scores", "id", [score_id])
    return {"message": "Score deletion queued successfully"}


def delete_trace(store: Store, trace_id: str, _: Query) -> Row:
    """Delete the observations and the scores of one trace."""
    delete_traces(store, {"traceIds": [trace_id]})
    return {"message": "Trace deleted successfully"}


def delete_traces(store: Store, body: Any) -> Row:
    """Delete the observations and the scores of several traces."""
    ids = texts(as_object(body).get("traceIds"), "traceIds")
    if not 1 <= len(ids) <= MAX_TRACES:
        raise Refused(f"traceIds must be a list of 1 to {MAX_TRACES} strings")
    with store.writing():
        for table in ("observations", "scores"):
            store.delete(table, "trace_id", ids)
    return {"message": "Traces deleted successfully"}
